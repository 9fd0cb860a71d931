"""Frames to the tower's size, against the checkpoint's own processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.resize import resize


def processor(size: int) -> Any:
    """LLaVA-OneVision's own image processor, in the form that needs no torchvision."""
    import transformers

    name = "LlavaOnevisionImageProcessor"
    kind = getattr(transformers, name + "Pil", None) or getattr(transformers, name)
    return kind(
        size={"height": size, "width": size}, do_rescale=False, do_normalize=False,
        image_grid_pinpoints=[[size, size]],
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(48, 64), (200, 100), (384, 384), (37, 501), (540, 960)])
@pytest.mark.parametrize("size", [96, 384])
def test_resize_equals_the_processors(shape: tuple[int, int], size: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    got = resize(torch.from_numpy(frame)[None], size)[0].int()
    pixels = processor(size)(images=[frame], return_tensors="np").pixel_values
    expected = torch.from_numpy(np.asarray(pixels))[0, 0].int()  # the whole picture comes first
    difference = (got - expected).abs()
    assert difference.max() <= 1
    assert (difference == 0).float().mean() >= 0.99


def test_resize_refuses_other_tensors() -> None:
    for bad in (torch.zeros(2, 4, 4, 3), torch.zeros(4, 4, 3, dtype=torch.uint8)):
        with pytest.raises(DyCokeError, match=r"allowed: uint8 \[F, H, W, 3\]"):
            resize(bad, 8)
    with pytest.raises(DyCokeError, match="empty"):
        resize(torch.zeros(0, 4, 4, 3, dtype=torch.uint8), 8)
    same = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(resize(same, 8), same.permute(0, 3, 1, 2))
