"""Memory and order of importance: the batched functions against slow and obvious ones."""

from __future__ import annotations

import pytest
import torch
from dycoke_trt.core.attention import masked_attention
from dycoke_trt.core.importance import averaged_scores, reorder, reorder_pool, swaps
from dycoke_trt.core.reselection import best_tokens, prunable_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

B, M, LAYERS, HEADS, DIM = 4, 5, 3, 2, 8


class Batch:
    """Two sequences in one pool, with blocks between them that belong to others."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.blocks = torch.randperm(3 * M, generator=draw)[: 2 * M].view(2, M)
        self.lengths = torch.randint(1, M * B + 1, (2,), generator=draw)
        begin = torch.randint(0, M * B // 2, (2, 1), generator=draw)
        end = begin + torch.randint(0, M * B, (2, 1), generator=draw)
        position = torch.arange(M * B)
        # The fed token is no visual one; visual tokens of its block are.
        before_fed = position < self.lengths[:, None] - 1
        self.visual = (position >= begin) & (position < end) & before_fed
        # Few values, so that there are ties.
        self.scores = torch.randint(0, 5, (2, M * B), generator=draw) / 8 * self.visual
        dropped = prunable_blocks(self.visual, self.lengths, B)
        dropped[:, ::2] = False
        self.places = self.visual & ~dropped.repeat_interleave(B, dim=1)
        self.selected = best_tokens(self.scores, self.visual, self.places.sum(1))
        shape = (3 * M, LAYERS, 2, HEADS, B, DIM)
        self.pool = torch.randn(shape, generator=draw)
        self.query = torch.randn(2, 2 * HEADS, DIM, generator=draw)
        self.order = swaps(self.selected, self.places)

    def context(self, pool: torch.Tensor, row: int, layer: int) -> torch.Tensor:
        """K and V of a sequence's tokens: [2, 1, M * B, Hkv, D]."""
        slabs = pool[self.blocks[row], layer]  # [M, 2, Hkv, B, D]
        return slabs.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, None]

    def attention(self, pool: torch.Tensor, row: int, layer: int) -> torch.Tensor:
        keys, values = self.context(pool, row, layer)
        everything = torch.arange(M * B)[None] < self.lengths[row]
        return masked_attention(self.query[row, None], keys, values, everything)


def slow_swaps(selected: list[bool], places: list[bool]) -> list[int]:
    entering = [t for t, (new, old) in enumerate(zip(selected, places, strict=True)) if new > old]
    leaving = [t for t, (new, old) in enumerate(zip(selected, places, strict=True)) if new < old]
    order = list(range(len(places)))
    for a, b in zip(entering, leaving, strict=True):
        order[a], order[b] = b, a
    return order


seeds = st.integers(0, 2**32)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_order_equals_the_obvious_one(seed: int) -> None:
    batch = Batch(seed)
    for row in range(2):
        slow = slow_swaps(batch.selected[row].tolist(), batch.places[row].tolist())
        assert batch.order[row].tolist() == slow


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_what_is_attended_are_the_selected_tokens(seed: int) -> None:
    batch = Batch(seed)
    for row in range(2):
        there = batch.order[row, batch.places[row]]
        assert sorted(there.tolist()) == batch.selected[row].nonzero()[:, 0].tolist()


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_pool_equals_the_obvious_one_and_neighbours_stay(seed: int) -> None:
    batch = Batch(seed)
    expected = batch.pool.clone()
    for row in range(2):
        for target, source in enumerate(batch.order[row].tolist()):
            to, origin = batch.blocks[row, target // B], batch.blocks[row, source // B]
            moved = batch.pool[origin, 1:, :, :, source % B]
            expected[to, 1:, :, :, target % B] = moved
    pool = batch.pool.clone()
    reorder_pool(pool, batch.order, batch.blocks, slice(1, None))
    assert torch.equal(pool, expected)
    assert torch.equal(pool[:, 0], batch.pool[:, 0])  # a layer that takes no part
    touched = batch.blocks[batch.visual.view(2, M, B).any(-1)]
    others = torch.ones(len(pool), dtype=torch.bool)
    others[touched] = False
    assert torch.equal(pool[others], batch.pool[others])


def test_padding_may_name_a_block_that_moves() -> None:
    """Row 1 is one block of text; its padding names the blocks of row 0."""
    pool = torch.randn(3, LAYERS, 2, HEADS, B, DIM)
    blocks = torch.tensor([[0, 1], [2, 0]])
    selected = torch.tensor([[False, False, True, True] + [False] * B, [False] * 2 * B])
    places = torch.tensor([[True, True, False, False] + [False] * B, [False] * 2 * B])
    order = swaps(selected, places)
    expected = pool.clone()
    expected[0] = pool[0].roll(2, dims=-2)
    reorder_pool(pool, order, blocks, slice(None))
    assert torch.equal(pool, expected)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_attention_over_all_tokens_does_not_change(seed: int) -> None:
    batch = Batch(seed)
    pool = batch.pool.clone()
    reorder_pool(pool, batch.order, batch.blocks, slice(None))
    for row in range(2):
        before, after = (batch.attention(p, row, 2) for p in (batch.pool, pool))
        torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


def test_an_order_off_by_one_changes_attention() -> None:
    for seed in range(100):
        batch = Batch(seed)
        moves = batch.order[0] != torch.arange(M * B)
        if moves.any():
            break
    wrong = batch.order.clone()
    wrong[0, int(moves.nonzero()[0])] += 1  # one token is doubled, another lost
    pool = batch.pool.clone()
    reorder_pool(pool, wrong, batch.blocks, slice(None))
    before, after = (batch.attention(p, 0, 2) for p in (batch.pool, pool))
    assert (after - before).abs().max() > 1e-3


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_only_visual_tokens_take_part(seed: int) -> None:
    batch = Batch(seed)
    stay = torch.arange(M * B).expand_as(batch.order)
    assert torch.equal(batch.order[~batch.visual], stay[~batch.visual])
    fed = batch.lengths[:, None] - 1
    assert torch.equal(batch.order.gather(1, fed), fed)
    assert torch.equal(batch.order.sort(1).values, stay)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_what_belongs_to_tokens_moves_with_them(seed: int) -> None:
    batch = Batch(seed)
    slots = (batch.blocks[:, :, None] * B + torch.arange(B)).flatten(1)
    memory = torch.arange(3 * M * B).float()
    before = memory.clone()
    reorder(memory, batch.order, slots)
    assert torch.equal(memory[slots], before[slots.gather(1, batch.order)])
    assert torch.equal(memory.sort().values, before)


@pytest.mark.parametrize("memory", [0.0, 0.35, 0.8])
def test_average_is_the_recurrence(memory: float) -> None:
    steps = torch.rand(6, 2, 7, generator=torch.Generator().manual_seed(1))
    average = torch.full((2, 7), torch.nan)  # not read in the first step
    expected = steps[0].double()
    for t, scores in enumerate(steps):
        average = averaged_scores(scores, average, torch.tensor([t == 0, t == 0]), memory)
        if t:
            expected = memory * expected + (1 - memory) * scores.double()
        torch.testing.assert_close(average.double(), expected, atol=1e-6, rtol=0)
