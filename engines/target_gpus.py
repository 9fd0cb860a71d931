"""What engines are built for: a GPU of the table (cost/gpus.py), or the one in this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import DyCokeError
from ..cost.gpus import GPUS, OLDEST_SM, Gpu, gpu_of_product
from ..runtime.nvidia_smi import VisibleGpu, visible_gpus

THIS_GPU = "this-gpu"
GPU_NAMES = tuple(GPUS)


@dataclass(frozen=True)
class TargetGpu:
    """name: of the folder below engines/. sm: 90 for compute capability 9.0. memory: bytes of one
    GPU. gpu: its published figures, None for a product that the table does not have."""

    name: str
    sm: int
    memory: float
    gpu: Gpu | None


def find_target_gpu(name: str, gpus: Sequence[VisibleGpu] | None = None) -> TargetGpu:
    """The GPU called `name`; gpus: this machine's, asked for where `this-gpu` needs them.

    Raises DyCokeError for a name that no GPU has, listing theirs, and for `this-gpu` on a machine
    without a GPU, with different ones, or with one too old.
    """
    if name in GPU_NAMES:
        gpu = GPUS[name]
        return TargetGpu(name, gpu.sm, gpu.memory, gpu)
    if name != THIS_GPU:
        raise DyCokeError(
            f"--target {name} is no GPU; allowed: {', '.join((*GPU_NAMES, THIS_GPU))}"
        )
    here = visible_gpus() if gpus is None else gpus
    if not here:
        raise DyCokeError(
            f"--target {THIS_GPU}: nvidia-smi lists no GPU here; name one: {', '.join(GPU_NAMES)}"
        )
    first = here[0]
    if other := next((gpu for gpu in here if gpu.sm != first.sm), None):
        raise DyCokeError(
            f"--target {THIS_GPU}: this machine has {first.name} (sm_{first.sm}) and {other.name} "
            f"(sm_{other.sm}); name the target that you mean"
        )
    if first.sm < OLDEST_SM:
        raise DyCokeError(
            f"{first.name} is sm_{first.sm}; engines need sm_{OLDEST_SM} or newer (Ampere)"
        )
    memory = min(gpu.memory for gpu in here)
    return TargetGpu(THIS_GPU, first.sm, memory, gpu_of_product(first.name))
