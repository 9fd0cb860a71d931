"""TTM by windows against core's, frame by frame."""

import pytest
import torch
from dycoke_trt.compress.newlines import take
from dycoke_trt.compress.ttm import Ttm
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.core.ttm import ttm_merge, ttm_select
from hypothesis import given
from hypothesis import strategies as st


@given(st.data())
def test_survivors_equal_the_reference_on_ties_and_zeros(data: st.DataObject) -> None:
    # Small whole numbers: many equal and zero vectors, and the same sums in any order.
    k = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9, 0.95]))
    videos, windows = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    tokens, top = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    shape = (videos, 4 * windows, tokens, 3)
    features = torch.randint(-top, top + 1, shape, generator=generator).float()
    rows = Ttm(tokens, k).survivors(features)
    merged = take(features, rows, None)
    for video, own_rows, own in zip(features, rows, merged, strict=True):
        assert own_rows.tolist() == ttm_select(video, k).tolist()
        assert torch.equal(own, ttm_merge(video, k))


def test_a_frame_has_at_most_1024_tokens() -> None:
    Ttm(1024, 0.5).survivors(torch.zeros(1, 4, 1024, 1))
    with pytest.raises(DyCokeError, match="1025 tokens per frame; TTM can be exported for 1024"):
        Ttm(1025, 0.5).survivors(torch.zeros(1, 4, 1025, 1))


def test_frames_that_fill_no_window_are_no_video() -> None:
    with pytest.raises(RuntimeError):
        Ttm(9, 0.5).survivors(torch.zeros(2, 6, 9, 1))
