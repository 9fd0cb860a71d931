"""What this machine has for running engines; found without importing any of it."""

from __future__ import annotations

from ..bundle.record import Installed
from .nvidia_smi import visible_gpus
from .tensorrt_library import TENSORRT, version_of
from .trtllm.plugin import PLUGIN_ABI

CONTAINER = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"


def installed() -> Installed:
    """For the checks of engine records; what is not here is None, and not compared."""
    gpus = visible_gpus()
    return Installed(
        sm=gpus[0].sm if gpus else None,
        tensorrt=TENSORRT.version,
        tensorrt_llm=version_of("tensorrt-llm"),
        plugin_abi=PLUGIN_ABI,
    )
