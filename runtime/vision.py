"""The vision step on a CPU: `vision_ttm.onnx` in ONNX Runtime."""

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
