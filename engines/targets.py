"""What engines are built for: a GPU of the table (cost/gpus.py), or the one in this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import DyCokeError
from ..cost.gpus import GPUS, Gpu, gpu_of_product
from .this_gpu import VisibleGpu, visible_gpus

THIS_GPU = "this-gpu"
NATIVE = ("cpu", "cuda")  # the native backend: nothing is compiled ahead of time
TARGETS = tuple(GPUS)
OLDEST_SM = 80  # bf16, and the oldest architecture that the kernels are compiled for


@dataclass(frozen=True)
class Target:
    """name: of the folder below engines/. sm: 90 for compute capability 9.0. memory: bytes of one
    GPU. gpu: its published figures, None for a product that the table does not have."""

    name: str
    sm: int
    memory: float
    gpu: Gpu | None


def check_name(name: str) -> None:
    """Raises DyCokeError, listing the names, for one that no target has."""
    if name not in (*NATIVE, *TARGETS, THIS_GPU):
        raise DyCokeError(
            f"unknown target {name!r}; allowed: {', '.join((*NATIVE, *TARGETS, THIS_GPU))}"
        )


def find_target(name: str, gpus: Sequence[VisibleGpu] | None = None) -> Target:
    """The target called `name`; gpus: this machine's, asked for where `this-gpu` needs them.

    Raises DyCokeError for an unknown name, listing the known ones, and for `this-gpu` on a machine
    without a GPU, with different ones, or with one too old.
    """
    if name in TARGETS:
        gpu = GPUS[name]
        return Target(name, gpu.sm, gpu.memory, gpu)
    check_name(name)
    found = visible_gpus() if gpus is None else gpus
    if not found:
        raise DyCokeError(
            f"--target {THIS_GPU}: nvidia-smi lists no GPU here; name one: {', '.join(TARGETS)}"
        )
    first = found[0]
    if other := next((gpu for gpu in found if gpu.sm != first.sm), None):
        raise DyCokeError(
            f"--target {THIS_GPU}: this machine has {first.name} (sm_{first.sm}) and {other.name} "
            f"(sm_{other.sm}); name the target that you mean"
        )
    if first.sm < OLDEST_SM:
        raise DyCokeError(
            f"{first.name} is sm_{first.sm}; engines need sm_{OLDEST_SM} or newer (Ampere)"
        )
    memory = min(gpu.memory for gpu in found)
    return Target(THIS_GPU, first.sm, memory, gpu_of_product(first.name))
