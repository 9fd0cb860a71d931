"""The first half of a pruned step's second launch: a row's record, its scores, its decision."""

from __future__ import annotations

import triton
import triton.language as tl

from ..core.decisions import Decision, GateMode
from .common import physical_block
from .score import head_statistics, head_sum

# Triton sees globals only as constexpr, and those as plain numbers.
FULL = tl.constexpr(Decision.FULL.value)
REUSE = tl.constexpr(Decision.REUSE.value)
RESELECT = tl.constexpr(Decision.RESELECT.value)
UNKNOWN = tl.constexpr(Decision.UNKNOWN.value)
GATE_FULL = tl.constexpr(GateMode.FULL.value)
GATE_ALWAYS = tl.constexpr(GateMode.ALWAYS.value)
GATE_ONCE = tl.constexpr(GateMode.ONCE.value)
NOT_PRUNABLE = tl.constexpr(-1.0)  # scores are sums of probabilities, so never negative


@triton.jit
def find_record(state_record, keys, prompt, length, decode, layers, capacity, BLOCK: tl.constexpr):
    """A sequence's record, at the block of its last prompt token: (its place, whether it is this
    sequence's, decode steps before this one, begin and end of its visual span).

    Here and below, loads do not wait for what the one before says: one program runs alone, so
    every load in a row costs its whole latency. What does not count is dropped afterwards.
    """
    prompted = decode & (prompt > 0) & (prompt <= length)
    last = tl.load(keys + tl.maximum(prompt - 1, 0) // BLOCK, mask=prompted, other=0)
    key = physical_block(last, layers)
    record = state_record + key.to(tl.int64) * 4
    inside_state = prompted & (key < capacity)
    recorded = tl.load(record, mask=inside_state, other=0)
    span_begin = tl.load(record + 1, mask=inside_state, other=0)
    span_end = tl.load(record + 2, mask=inside_state, other=0)
    steps = tl.load(record + 3, mask=inside_state, other=0)
    known = inside_state & (recorded == prompt)
    span_begin = tl.where(known, span_begin, 0)
    span_end = tl.where(known, tl.minimum(span_end, length), 0)
    return record, known, steps, span_begin, span_end


@triton.jit
def score_tile(
    scores, top, inverse, state_scores, state_average, state_visual,
    row, first, column, block, owned, length, first_step, span_begin, span_end, max_blocks, memory,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, BLOCK: tl.constexpr, TILE_BLOCKS: tl.constexpr,
    FUSED: tl.constexpr,
):  # fmt: skip
    """New scores and averages of a tile of blocks, to the state.

    column, block, owned: [TILE_BLOCKS], logical and physical blocks from column `first` on, and
    which of them have a state. Returns [TILE_BLOCKS, BLOCK] each: positions, which tokens are
    visual, and these tokens' scores, scores of the step before, and averages.
    """
    slot = tl.arange(0, BLOCK)
    position = column[:, None] * BLOCK + slot[None, :]
    spanned = owned[:, None] & (position >= span_begin) & (position < span_end)
    place = block.to(tl.int64)[:, None] * BLOCK + slot[None, :]
    visual = tl.load(state_visual + place, mask=spanned, other=0) != 0
    later = spanned & ~first_step
    before = tl.load(state_scores + place, mask=later, other=0.0)
    past = tl.load(state_average + place, mask=later & (memory > 0), other=0.0)
    cached = visual & (position < length - 1)
    if FUSED:
        t = first * BLOCK + tl.arange(0, TILE_BLOCKS * BLOCK)
        flat = head_sum(
            scores, top, inverse, row, t, t < tl.minimum(span_end, length - 1),
            max_blocks * BLOCK, HEADS, HEADS_PAD,
        )  # fmt: skip
        now = tl.where(cached, tl.reshape(flat, [TILE_BLOCKS, BLOCK]) / HEADS, 0.0)
    else:
        line = scores + row.to(tl.int64) * (max_blocks * BLOCK)
        now = tl.load(line + position, mask=cached, other=0.0)
    before = tl.where(visual, before, 0.0)
    average = tl.where(visual & (memory > 0) & ~first_step, now + memory * (past - now), now)
    # Threads may hold copies of an element: all have read the old score before one writes.
    tl.debug_barrier()
    tl.store(state_scores + place, now, mask=visual)
    tl.store(state_average + place, average, mask=visual & (memory > 0))
    return position, visual, now, before, average


@triton.jit
def score_blocks(
    scores, maxima, sums, keys, state_scores, state_average, state_visual, state_keep,
    block_scores, row, length, decode, first_step, span_begin, span_end, span_first, span_last,
    layers, capacity, max_blocks, splits, reduce_max, memory,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr,
    BLOCK: tl.constexpr, TILE_BLOCKS: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """Tile by tile through the blocks of the visual span: their scores, of the averages of their
    tokens, and the state's new scores and averages.

    Returns what the gate sums up, [TILE_BLOCKS, BLOCK] each: the product with the scores before,
    this step's squares and those before; and by tile, [TILE_BLOCKS], how many blocks are prunable
    and how many of these the last selection left out.
    """
    top, inverse = 0.0, 0.0
    if FUSED:
        top, inverse = head_statistics(
            maxima, sums, row, splits, decode, HEADS, HEADS_PAD, SPLITS_PAD
        )
    dot = tl.zeros([TILE_BLOCKS, BLOCK], tl.float32)
    norm_now = tl.zeros([TILE_BLOCKS, BLOCK], tl.float32)
    norm_before = tl.zeros([TILE_BLOCKS, BLOCK], tl.float32)
    prunable_count = tl.zeros([TILE_BLOCKS], tl.int32)
    dropped_before = tl.zeros([TILE_BLOCKS], tl.int32)
    for first in range(span_first, span_last, TILE_BLOCKS):
        column = first + tl.arange(0, TILE_BLOCKS)
        here = column < span_last
        block = physical_block(tl.load(keys + column, mask=here, other=0), layers)
        owned = here & (block < capacity)
        kept = tl.load(state_keep + block, mask=owned, other=1) != 0
        _, visual, now, before, average = score_tile(
            scores, top, inverse, state_scores, state_average, state_visual, row, first,
            column, block, owned, length, first_step, span_begin, span_end, max_blocks, memory,
            HEADS, HEADS_PAD, BLOCK, TILE_BLOCKS, FUSED,
        )  # fmt: skip
        dot += now * before
        norm_now += now * now
        norm_before += before * before

        prunable = (tl.sum(visual.to(tl.int32), 1) == BLOCK) & (column < (length - 1) // BLOCK)
        merged = block_score(average, prunable, reduce_max)
        tl.store(block_scores + row * max_blocks + column, merged, mask=here)
        prunable_count += prunable.to(tl.int32)
        dropped_before += (prunable & ~kept).to(tl.int32)
    return dot, norm_now, norm_before, prunable_count, dropped_before


@triton.jit
def decide(dot, norm_now, norm_before, known, first_step, mode, threshold):
    """The gate, from tiles of partial sums over the visual tokens: (decision, cosine)."""
    norms = tl.sqrt(tl.sum(tl.sum(norm_now, 1), 0)) * tl.sqrt(tl.sum(tl.sum(norm_before, 1), 0))
    cosine = tl.where(norms > 0, tl.sum(tl.sum(dot, 1), 0) / tl.where(norms > 0, norms, 1.0), 0.0)
    stable = (((cosine >= threshold) & (mode != GATE_ALWAYS)) | (mode == GATE_ONCE)) & ~first_step
    decision = tl.where(stable, tl.where(mode == GATE_FULL, FULL, REUSE), RESELECT)
    return tl.where(known, decision, UNKNOWN), cosine


@triton.jit
def block_score(average, prunable, reduce_max):
    """Scores [TILE_BLOCKS] of blocks from their tokens' [TILE_BLOCKS, BLOCK]."""
    merged = tl.where(reduce_max != 0, tl.max(average, 1), tl.sum(average, 1))
    # What is not a number ranks first, as in torch's descending sort.
    merged = tl.where(merged == merged, merged, float("inf"))
    return tl.where(prunable, merged, NOT_PRUNABLE)
