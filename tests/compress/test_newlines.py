"""Newlines against LLaVA-NeXT's own functions on whole frames, and in place after compression."""

from __future__ import annotations

import math

import pytest
import torch
from dycoke_trt.compress.base import compressor_of, survivor_count, visual_tokens
from dycoke_trt.compress.newlines import NEWLINES, Newline, newline_count, take, with_newlines
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.core.ttm import ttm_count
from hypothesis import given
from hypothesis import strategies as st

KS = [0.0, 0.3, 0.5, 0.7, 0.95]


def by_llava_next(features: torch.Tensor, newline: torch.Tensor, layout: Newline) -> torch.Tensor:
    """[F, N, D] -> [V, D], picture by picture: what `mm_newline_position` asks for there."""
    side = math.isqrt(features.shape[1])
    sequence = []
    for frame in features:
        if layout == "grid":
            for row in frame.view(side, side, -1):
                sequence += [*row, newline]
        else:
            sequence += [*frame, *([newline] if layout == "frame" else [])]
    return torch.stack([*sequence, *([newline] if layout == "one_token" else [])])


@pytest.mark.parametrize("layout", NEWLINES)
def test_without_compression_it_is_what_the_released_code_builds(layout: Newline) -> None:
    features, newline = torch.randn(2, 4, 9, 5), torch.randn(5)
    rows = torch.arange(36).expand(2, -1)
    for kept in [(9,), (9, 9), (9, 9, 9, 9)]:
        placed = with_newlines(rows, layout, kept, 9)
        found = take(features, placed, newline)
        for video, own in zip(features, found, strict=True):
            assert torch.equal(own, by_llava_next(video, newline, layout))


@given(st.data())
def test_every_newline_ends_what_it_ended_before(data: st.DataObject) -> None:
    layout, k = data.draw(st.sampled_from(NEWLINES)), data.draw(st.sampled_from(KS))
    side, windows = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    tokens, frames = side * side, 4 * windows
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    features = torch.randn(2, frames, tokens, 3, generator=generator)
    config = DyCokeConfig(k=k)
    compressor = compressor_of(config, tokens)
    rows = compressor.survivors(features)
    placed = with_newlines(rows, layout, compressor.kept, tokens)
    assert placed.shape == (2, visual_tokens(frames, tokens, config, layout))
    for own, survivors in zip(placed.tolist(), rows.tolist(), strict=True):
        # Each row, frame or video ends with one: put them behind the survivors one by one.
        group = {"grid": side, "frame": tokens, "one_token": frames * tokens, "no_token": None}
        expected: list[int] = []
        step = group[layout]
        for first in range(0, frames * tokens, step or frames * tokens):
            last = first + (step or frames * tokens)
            expected += [row for row in survivors if first <= row < last]
            expected += [-1] if step else []
        assert own == expected


def test_counts() -> None:
    paper, off = DyCokeConfig(k=0.7), DyCokeConfig.off()
    assert [newline_count(layout, 32, 196) for layout in NEWLINES] == [1, 32, 448, 0]
    assert visual_tokens(32, 196, off, "grid") == 32 * 14 * 15
    assert visual_tokens(32, 196, paper, "grid") == 2960 + 448
    assert survivor_count(7, 196, paper) == 196 + 58 * 3 + 196 + 58 * 2
    reference = DyCokeConfig.reference()
    assert survivor_count(9, 4, reference) == ttm_count(9, 4, 0.7, "reference")


def test_rows_need_a_square() -> None:
    with pytest.raises(DyCokeError, match=r"newlines after each row \(grid\).*not 35"):
        newline_count("grid", 4, 35)
    assert newline_count("frame", 4, 35) == 4
