"""Order of importance, inside `select`: which tokens of a row change places, and their state.

The same as core/state.py's `reselect` with order="importance": the first prunable blocks are kept,
and a new selection brings the best visual tokens there, by swaps (`core.importance.swaps`) with
those that leave. kernels/reorder.py moves K and V.

`scratch` is a row's part of `swaps`, int32 [2, M * B]. Its first line has the key of each token of
the visual span, by which it is ranked; the second the places of the tokens that enter, from its
middle on of those that leave.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import physical_block
from .gate import NOT_PRUNABLE
from .top import NO_KEY, last_wanted, score_key, take

TILE = tl.constexpr(1024)  # tokens looked at at a time


@triton.jit
def state_place(keys, t, valid, layers, BLOCK: tl.constexpr):
    """(block, place in the state) of the tokens at positions t of the row with the table `keys`."""
    block = physical_block(tl.load(keys + t // BLOCK, mask=valid, other=0), layers)
    return block, block.to(tl.int64) * BLOCK + t % BLOCK


@triton.jit
def keep_first(ranked, wanted, span_first, span_last, COLUMNS: tl.constexpr):
    """Block scores by which the first `wanted` of the prunable blocks are kept: 1, and 0 behind."""
    before = 0
    for first in range(span_first, span_last, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        prunable = tl.load(ranked + column, mask=column < span_last, other=NOT_PRUNABLE) >= 0
        number = before + tl.cumsum(prunable.to(tl.int32), 0) - 1
        tl.store(ranked + column, tl.where(number < wanted, 1.0, 0.0), mask=prunable)
        before += tl.sum(prunable.to(tl.int32), 0)


@triton.jit
def attended(ranked, key, t, valid, BLOCK: tl.constexpr):
    """Which visual tokens lie where every pruned step attends; key: NO_KEY of what is none."""
    return (key >= 0) & (tl.load(ranked + t // BLOCK, mask=valid, other=0.0) != 0)


@triton.jit
def write_keys(
    scratch, ranked, keys, state_scores, state_average, state_visual, begin, end,
    layers, capacity, memory, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys of positions begin <= t < end (kernels/top.py). Returns how many visual tokens lie at
    attended places."""
    places = tl.zeros([TILE], tl.int32)
    for first in range(begin, end, TILE):
        t = first + tl.arange(0, TILE)
        inside = t < end
        block, place = state_place(keys, t, inside, layers, BLOCK)
        owned = inside & (block < capacity)
        visual = tl.load(state_visual + place, mask=owned, other=0) != 0
        average = tl.load(state_average + place, mask=owned & (memory > 0), other=0.0)
        score = tl.load(state_scores + place, mask=owned & (memory <= 0), other=0.0)
        key = score_key(tl.where(memory > 0, average, score), visual)
        tl.store(scratch + t, key, mask=inside)
        places += attended(ranked, key, t, inside, BLOCK).to(tl.int32)
    return tl.sum(places, 0)


@triton.jit
def write_swaps(scratch, ranked, wanted, begin, end, max_tokens, BLOCK: tl.constexpr):
    """Lists who enters and who leaves, both in ascending position; returns how many do."""
    last, ties = last_wanted(scratch, wanted, begin, end, TILE)
    entering = scratch + max_tokens
    leaving = entering + max_tokens // 2
    tied = tl.full([], 0, tl.int32)
    entered = tl.full([], 0, tl.int32)
    left = tl.full([], 0, tl.int32)
    for first in range(begin, end, TILE):
        t = first + tl.arange(0, TILE)
        key = tl.load(scratch + t, mask=t < end, other=NO_KEY)
        selected, tied = take(key, last, ties, tied)
        there = attended(ranked, key, t, t < end, BLOCK)
        enters = (selected & ~there).to(tl.int32)
        leaves = (there & ~selected).to(tl.int32)
        tl.store(entering + entered + tl.cumsum(enters, 0) - 1, t, mask=enters != 0)
        tl.store(leaving + left + tl.cumsum(leaves, 0) - 1, t, mask=leaves != 0)
        entered += tl.sum(enters, 0)
        left += tl.sum(leaves, 0)
    return entered


@triton.jit
def swap_state(
    scratch, keys, state_scores, state_average, pairs, layers, max_tokens, memory,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Scores and averages follow their tokens; marks need not, visual tokens change places."""
    for first in range(0, pairs, TILE):
        i = first + tl.arange(0, TILE)
        valid = i < pairs
        a = tl.load(scratch + max_tokens + i, mask=valid, other=0)
        b = tl.load(scratch + max_tokens + max_tokens // 2 + i, mask=valid, other=0)
        _, a = state_place(keys, a, valid, layers, BLOCK)
        _, b = state_place(keys, b, valid, layers, BLOCK)
        score_a = tl.load(state_scores + a, mask=valid)
        score_b = tl.load(state_scores + b, mask=valid)
        averaged = valid & (memory > 0)
        average_a = tl.load(state_average + a, mask=averaged)
        average_b = tl.load(state_average + b, mask=averaged)
        # Threads may hold copies of an element: all have read before one writes.
        tl.debug_barrier()
        tl.store(state_scores + a, score_b, mask=valid)
        tl.store(state_scores + b, score_a, mask=valid)
        tl.store(state_average + a, average_b, mask=averaged)
        tl.store(state_average + b, average_a, mask=averaged)


@triton.jit
def bring_selected(
    scratch, ranked, keys, state_scores, state_average, state_visual, begin, end,
    layers, capacity, max_tokens, memory, BLOCK: tl.constexpr,
):  # fmt: skip
    """A new selection of a row whose first blocks are kept (`keep_first`): lists the swaps in
    `scratch`, makes those of the state, returns how many they are."""
    places = write_keys(
        scratch, ranked, keys, state_scores, state_average, state_visual, begin, end,
        layers, capacity, memory, BLOCK,
    )  # fmt: skip
    tl.debug_barrier()
    pairs = write_swaps(scratch, ranked, places, begin, end, max_tokens, BLOCK)
    tl.debug_barrier()
    swap_state(
        scratch, keys, state_scores, state_average, pairs, layers, max_tokens, memory, BLOCK
    )  # fmt: skip
    return pairs
