"""Frames to the size the tower takes. Rescaling and normalising are in the vision graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.errors import DyCokeError
from .video.pixels import resize_picture


def resize(frames: Tensor, size: int) -> Tensor:
    """uint8 [F, H, W, 3] -> uint8 [F, 3, size, size], bicubic with antialiasing.

    What the checkpoint's processor does, by Pillow as there (the aspect ratio is not kept). Frames
    of that size pass unchanged. Raises DyCokeError for another dtype or shape.
    """
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[3] != 3:
        raise DyCokeError(
            f"frames are {str(frames.dtype).removeprefix('torch.')} {list(frames.shape)}; "
            "allowed: uint8 [F, H, W, 3]"
        )
    if 0 in frames.shape:
        raise DyCokeError(f"frames are empty: {list(frames.shape)}")
    planes = frames.permute(0, 3, 1, 2)
    if planes.shape[2:] == (size, size):
        return planes.contiguous()
    resized = [resize_picture(frame, (size, size)) for frame in frames.cpu().numpy()]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
