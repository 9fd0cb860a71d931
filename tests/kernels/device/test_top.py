"""The best of many scores by their bits, against a stable sort."""

from __future__ import annotations

import dycoke_trt.kernels.interpreter  # noqa: F401  repairs what runs the kernel below
import torch
import triton
import triton.language as tl
from dycoke_trt.core.reselection import select_tokens
from dycoke_trt.kernels.top import last_wanted, score_key, take
from dycoke_trt.tests.draws import few_examples, given, st
from dycoke_trt.tests.kernels.device.batches import DEVICE
from torch import Tensor


@triton.jit
def best_kernel(scores, candidates, keys, taken, wanted, begin, end, tile: tl.constexpr):
    for first in range(begin, end, tile):
        t = first + tl.arange(0, tile)
        score = tl.load(scores + t, mask=t < end, other=0.0)
        candidate = tl.load(candidates + t, mask=t < end, other=0) != 0
        tl.store(keys + t, score_key(score, candidate), mask=t < end)
    tl.debug_barrier()
    last, ties = last_wanted(keys, wanted, begin, end, tile)
    tied = 0
    for first in range(begin, end, tile):
        t = first + tl.arange(0, tile)
        key = tl.load(keys + t, mask=t < end, other=-1)
        chosen, tied = take(key, last, ties, tied)
        tl.store(taken + t, chosen.to(tl.uint8), mask=t < end)


def best(scores: Tensor, candidates: Tensor, wanted: int, margin: int) -> Tensor:
    """bool [T]; what lies in the margins is of others, and neither read nor written."""
    count = len(scores)
    around = torch.full((count + 2 * margin,), torch.inf, device=DEVICE)
    around[margin : margin + count] = scores
    allowed = torch.ones(len(around), dtype=torch.uint8, device=DEVICE)
    allowed[margin : margin + count] = candidates
    keys = torch.full((len(around),), 2**31 - 1, dtype=torch.int32, device=DEVICE)
    taken = torch.full((len(around),), 7, dtype=torch.uint8, device=DEVICE)
    best_kernel[(1,)](around, allowed, keys, taken, wanted, margin, margin + count, tile=32)
    inside = taken[margin : margin + count]
    assert int((taken == 7).sum()) == 2 * margin
    return inside != 0


@few_examples
@given(
    count=st.integers(1, 150), levels=st.sampled_from([1, 2, 5, 0]), share=st.integers(0, 4),
    margin=st.sampled_from([0, 3]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_the_best_are_those_of_a_stable_sort(
    count: int, levels: int, share: int, margin: int, seed: int
) -> None:
    """levels: of equal scores; 0: of all sizes that fp32 has, zero and what is no number too."""
    random = torch.Generator().manual_seed(seed)
    if levels:
        scores = torch.randint(0, levels, (count,), generator=random) / 64
    else:
        scores = 2.0 ** torch.randint(-149, 1, (count,), generator=random)
        scores *= torch.rand(count, generator=random)
        for value in (torch.nan, 0.0, -0.0):
            scores[torch.rand(count, generator=random) < 0.1] = value
    candidates = torch.rand(count, generator=random) < 0.8
    scores, candidates = scores.to(DEVICE), candidates.to(DEVICE)
    wanted = int(candidates.sum()) * share // 4
    keep_table = torch.full((count + 1,), wanted, dtype=torch.int32, device=DEVICE)
    # As for torch, what is no number comes before everything.
    expected = select_tokens(
        scores.nan_to_num(torch.inf)[None], candidates[None], keep_table
    )[0]  # fmt: skip
    assert torch.equal(best(scores, candidates, wanted, margin), expected)
