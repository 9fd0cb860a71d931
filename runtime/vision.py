"""The vision step: on an engine of TensorRT, or native.

Native is `vision_ttm.onnx` in ONNX Runtime on a CPU, and its weights in torch on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..bundle.loading import checked_parts
from ..core.errors import DyCokeError

FILE = "vision_ttm.onnx"
NATIVE, TENSORRT = "native", "tensorrt"


class Vision(Protocol):
    """The vision step: uint8 [B, F, 3, S, S], F a multiple of 4 -> [B, M+1, hidden]."""

    def __call__(self, frames: Tensor) -> Tensor: ...


def load_vision(bundle: Path, build: str, threads: int = 0, kind: str = NATIVE) -> Vision:
    """The vision step beside the LLM that `dycoke build --target build` made.

    kind: NATIVE, for the build `cpu` or `cuda`, or TENSORRT for the plan of any other. threads: of
    a CPU, 0 takes all cores. Raises DyCokeError for a bundle that cannot be loaded or is damaged,
    an engine that does not fit this machine, and without a GPU for anything but `cpu`.
    """
    if kind == TENSORRT:
        return _plan(bundle, build)
    if build == "cpu":
        with checked_parts(bundle, FILE):
            return OnnxVision(bundle, threads)
    from .native.gpu import find_gpu
    from .vision_torch import TorchVision

    place = find_gpu()
    try:
        with checked_parts(bundle, FILE):
            return TorchVision.from_bundle(bundle, place, kernels=True)
    except torch.OutOfMemoryError:
        raise DyCokeError(
            f"{bundle}: the vision step does not fit in what is free of the GPU's memory"
        ) from None


def _plan(bundle: Path, build: str) -> Vision:
    from ..bundle.files import open_bundle
    from ..bundle.record import read_record
    from ..engines.installed import installed
    from ..engines.tensorrt_library import TENSORRT as LIBRARY
    from ..engines.vision_plan import PLAN_FILE
    from .vision_engine import EngineVision

    folder = bundle / "engines" / build
    read_record(folder, open_bundle(bundle), bundle, installed=installed())
    again = f"run: dycoke build {bundle} --target {build}, here"
    return EngineVision(folder / PLAN_FILE, LIBRARY.load(), again=again)


class OnnxVision:
    """Frames to visual embeddings. threads: 0 takes as many as there are cores."""

    def __init__(self, bundle: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        path = bundle / FILE
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's exceptions share no public base class
            reason = str(error).strip().splitlines()[0]
            raise DyCokeError(f"{path}: ONNX Runtime cannot load it ({reason})") from None

    def __call__(self, frames: Tensor) -> Tensor:
        """frames: uint8 [B, F, 3, S, S], F a multiple of 4 -> [B, M+1, hidden] in its dtype."""
        (embeddings,) = self._session.run(["visual_embeds"], {"frames": frames.numpy()})
        return torch.from_numpy(embeddings)
