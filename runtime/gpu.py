"""The GPU of the native backend: the first that CUDA shows (CUDA_VISIBLE_DEVICES chooses)."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import torch

from ..core.errors import DyCokeError
from ..cost.gpus import OLDEST_SM

CUDA = "cuda"  # the target of builds for it, and the name of its folder below engines/


def find_gpu() -> torch.device:
    """Where the device backend runs. Raises DyCokeError, one line, where it cannot.

    With TRITON_INTERPRET=1 that is the CPU: kernels run in Triton's interpreter, for tests.
    """
    if find_spec("triton") is None:
        raise DyCokeError("triton is not installed; run: pip install 'dycoke-trt[kernels]'")
    from ..kernels.interpreter import INTERPRETED

    if INTERPRETED:
        return torch.device("cpu")
    if torch.version.cuda is None:
        raise DyCokeError(
            f"torch {torch.__version__} is built without CUDA, so nothing can run on a GPU; "
            "install a CUDA build of torch, or use --target cpu"
        )
    with warnings.catch_warnings(record=True) as said:  # of an old driver, several lines
        warnings.simplefilter("always")
        is_there = torch.cuda.is_available()
    if not is_there:
        reason = f" ({str(said[0].message).partition('. ')[0]})" if said else ""
        raise DyCokeError(
            f"torch {torch.__version__} sees no GPU here{reason}; look at `dycoke doctor` and "
            "CUDA_VISIBLE_DEVICES, or use --target cpu"
        )
    device = torch.device(CUDA, 0)
    if (sm := architecture(device) or 0) < OLDEST_SM:
        raise DyCokeError(
            f"{torch.cuda.get_device_name(0)} is sm_{sm}; the native backend needs sm_{OLDEST_SM} "
            "or newer (Ampere)"
        )
    return device


def architecture(device: torch.device) -> int | None:
    """90 for compute capability 9.0; None for a CPU."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
