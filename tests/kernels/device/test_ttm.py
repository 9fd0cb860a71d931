"""Survivors of TTM against core/: the same tokens, in the same order."""

from __future__ import annotations

import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.core.ttm import similarity, ttm_select
from dycoke_trt.kernels.ttm import TtmPlan, select_survivors
from dycoke_trt.tests.draws import assume, few_examples, given, st
from dycoke_trt.tests.kernels.device.batches import DEVICE, DTYPES


@few_examples
@given(
    frames=st.integers(1, 9), tokens=st.sampled_from([1, 4, 9, 20]),
    width=st.sampled_from([16, 40, 1300]), k=st.sampled_from([0.0, 0.5, 0.7, 0.99]),
    mode=st.sampled_from(["paper", "off"]), levels=st.sampled_from([0, 1, 3]),
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_survivors_equal_core(
    frames: int, tokens: int, width: int, k: float, mode: str, levels: int, dtype: torch.dtype,
    seed: int,
) -> None:  # fmt: skip
    """levels: > 0 draws few different tokens, so that many similarities tie, zeros among them."""
    torch.manual_seed(seed)
    features = torch.randn(frames, tokens, width)
    if levels:
        kinds = torch.cat([torch.randn(levels, width), torch.zeros(1, width)])
        features = kinds[torch.randint(levels + 1, (frames, tokens))]
    features = features.to(DEVICE, dtype)
    expected = ttm_select(features, k, mode)
    got = select_survivors(features, TtmPlan.make(frames, tokens, k, mode, DEVICE))
    assert len(got) == len(expected)
    # Sums in another order may differ by a step of the grid where two tokens are that near.
    assume(levels or separated(features))
    assert torch.equal(got, expected)


def separated(features: torch.Tensor) -> bool:
    """Whether no two similarities of a frame, with any other frame, are within two grid steps."""
    for back in (1, 2):
        found = similarity(features[back:], features[:-back]).sort(-1).values
        if bool((found.diff(dim=-1) < 3 * 2.0**-20).any()):
            return False
    return True


@pytest.mark.parametrize("mode", ["reference", "random"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(DyCokeError, match="runs on a CPU only"):
        TtmPlan.make(8, 4, 0.5, mode, DEVICE)
