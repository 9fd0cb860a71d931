"""Frames to pixels, for training and the oracle; the exported graph normalises by itself.

transformers' own video processor needs torchvision, which has no build that matches CPU torch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.resize import resize
from .scenes import IMAGE_SIZE


def to_pixels(frames: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> fp32 [..., 3, S, S]: resize, rescale 1/255, (x - 0.5) / 0.5.

    Raises DyCokeError for another dtype or shape.
    """
    given = torch.as_tensor(frames)
    flat = resize(given.flatten(0, -4), IMAGE_SIZE)
    return ((flat / 255 - 0.5) / 0.5).view(*given.shape[:-3], *flat.shape[1:])
