"""Frames to pixels. transformers' own video processor needs torchvision, which has no build here
that matches CPU torch; this does the same with torch alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .scenes import IMAGE_SIZE


def to_pixels(frames: NDArray[np.uint8] | Tensor, image_size: int = IMAGE_SIZE) -> Tensor:
    """uint8 [..., H, W, 3] -> fp32 [..., 3, S, S]: resize (bicubic), rescale 1/255, (x-0.5)/0.5.

    Frames that already have the model's size are not resampled.
    Raises ValueError for another dtype or shape.
    """
    given = torch.as_tensor(frames)
    if given.dtype != torch.uint8 or given.dim() < 3 or given.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 [..., H, W, 3], got {given.dtype} {given.shape}")
    pixels = given.movedim(-1, -3).float()
    if pixels.shape[-2:] != (image_size, image_size):
        flat = pixels.flatten(0, -4)
        flat = torch.nn.functional.interpolate(
            flat, size=(image_size, image_size), mode="bicubic", antialias=True
        )
        # A uint8 resize, as image libraries do it: bicubic overshoots.
        flat = flat.round().clamp(0, 255)
        pixels = flat.reshape(*pixels.shape[:-2], image_size, image_size)
    return (pixels / 255 - 0.5) / 0.5
