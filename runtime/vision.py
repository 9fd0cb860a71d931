"""The vision step: `vision_ttm.onnx` in ONNX Runtime on a CPU, its weights in torch on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..core.errors import DyCokeError

FILE = "vision_ttm.onnx"


class Vision(Protocol):
    """The vision step: uint8 [B, F, 3, S, S], F a multiple of 4 -> [B, M+1, hidden]."""

    def __call__(self, frames: Tensor) -> Tensor: ...


def load_vision(bundle: Path, device: str, threads: int = 0) -> Vision:
    """The vision step on `cpu` or `cuda`; threads: of a CPU, 0 takes all cores.

    Raises DyCokeError for a bundle that cannot be loaded, and without a GPU for `cuda`.
    """
    if device == "cpu":
        return OnnxVision(bundle, threads)
    from .native.gpu import find_gpu
    from .vision_torch import TorchVision

    place = find_gpu()
    try:
        return TorchVision.from_bundle(bundle, place, kernels=True)
    except torch.OutOfMemoryError:
        raise DyCokeError(
            f"{bundle}: the vision step does not fit in what is free of the GPU's memory"
        ) from None


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
