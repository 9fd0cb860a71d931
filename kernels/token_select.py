"""Second launch of a pruned step at token granularity, one program a row: scores, gate, the best
visual tokens (kernels/top.py), and the list of all that layers >= l attend to
(kernels/token_attention.py).

What it computes is core/state.py's `reselect_tokens`, on the same state; as in kernels/select.py,
scores and cosine are fp32 sums in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.decisions import Decision, GateMode
from ..core.state import ReselectionState
from .common import check_int32, padded, physical_block
from .gate import RESELECT, REUSE, decide, find_record, score_tile
from .score import MOST_SPLITS, ScoreWorkspace, head_statistics
from .select import unmark_fed_token
from .top import NO_KEY, last_wanted, score_key, take

WARPS = 16
TILE = 1024  # tokens counted and listed at a time


@triton.jit
def score_tokens(
    scores, maxima, sums, keys, state_scores, state_average, state_visual, ranked,
    row, length, decode, first_step, span_begin, span_end, span_first, span_last,
    layers, capacity, max_blocks, splits, memory,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr,
    BLOCK: tl.constexpr, TILE_BLOCKS: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """Tile by tile through the blocks of the visual span: the keys of its tokens go to `ranked`.

    Returns what the gate sums up and which tokens are visual, [TILE_BLOCKS, BLOCK] each.
    """
    top, inverse = 0.0, 0.0
    if FUSED:
        top, inverse = head_statistics(
            maxima, sums, row, splits, decode, HEADS, HEADS_PAD, SPLITS_PAD
        )
    dot = tl.zeros([TILE_BLOCKS, BLOCK], tl.float32)
    norm_now = tl.zeros([TILE_BLOCKS, BLOCK], tl.float32)
    norm_before = tl.zeros([TILE_BLOCKS, BLOCK], tl.float32)
    visual_count = tl.zeros([TILE_BLOCKS], tl.int32)
    for first in range(span_first, span_last, TILE_BLOCKS):
        column = first + tl.arange(0, TILE_BLOCKS)
        here = column < span_last
        block = physical_block(tl.load(keys + column, mask=here, other=0), layers)
        owned = here & (block < capacity)
        position, visual, now, before, average = score_tile(
            scores, top, inverse, state_scores, state_average, state_visual, row, first,
            column, block, owned, length, first_step, span_begin, span_end, max_blocks, memory,
            HEADS, HEADS_PAD, BLOCK, TILE_BLOCKS, FUSED,
        )  # fmt: skip
        dot += now * before
        norm_now += now * now
        norm_before += before * before
        visual_count += tl.sum(visual.to(tl.int32), 1)
        key = score_key(average, visual)
        tl.store(ranked + position, key, mask=position < span_last * BLOCK)
    return dot, norm_now, norm_before, visual_count


@triton.jit
def list_tokens(
    entries, ranked, state_keep, out, decision, length, last, ties, begin, end, layers,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Writes to `out` the slots of what is attended to, in logical order, and to the state a new
    selection. Returns how many are attended to."""
    listed = 0
    tied = 0
    for first in range(0, length, TILE):
        t = first + tl.arange(0, TILE)
        inside = t < length
        block = physical_block(tl.load(entries + t // BLOCK, mask=inside, other=0), layers)
        slot = block * BLOCK + t % BLOCK
        key = tl.load(ranked + t, mask=inside & (t >= begin) & (t < end), other=NO_KEY)
        visual = key >= 0
        taken, tied = take(key, last, ties, tied)
        mark = state_keep + slot.to(tl.int64)
        kept = tl.load(mark, mask=visual & (decision == REUSE), other=1) != 0
        keep = tl.where(decision == RESELECT, taken, kept) | ~visual
        tl.store(mark, taken.to(tl.uint8), mask=visual & (decision == RESELECT))
        keep = (keep & inside).to(tl.int32)
        tl.store(out + listed + tl.cumsum(keep, 0) - 1, slot, mask=keep > 0)
        listed += tl.sum(keep, 0)
    return listed


@triton.jit(do_not_specialize=["layers", "capacity", "max_blocks", "splits", "mode"])
def token_select_kernel(
    scores, maxima, sums, table, lengths, prompt_lengths, keep_table,
    state_scores, state_average, state_visual, state_keep, state_record, ranked,
    out_slots, out_lengths, decisions, similarities, counters,
    layers, capacity, max_blocks, splits, mode, threshold, memory,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr,
    BLOCK: tl.constexpr, TILE_BLOCKS: tl.constexpr, TILE: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """Program (row). FUSED: `scores` are the logits of kernels/score.py, else scores [S, M * B].

    Of sequences without a matching record all tokens are listed, of unused lanes none.
    """
    row = tl.program_id(0)
    length = tl.load(lengths + row)
    prompt = tl.load(prompt_lengths + row)
    decode = length > 0
    keys = table + 2 * row * max_blocks
    line = row.to(tl.int64) * (max_blocks * BLOCK)

    record, known, steps, span_begin, span_end = find_record(
        state_record, keys, prompt, length, decode, layers, capacity, BLOCK
    )
    first_step = steps == 0

    span_first = span_begin // BLOCK
    span_last = tl.where(span_end > span_begin, tl.cdiv(span_end, BLOCK), span_first)
    dot, norm_now, norm_before, visual_count = score_tokens(
        scores, maxima, sums, keys, state_scores, state_average, state_visual, ranked + line,
        row, length, decode, first_step, span_begin, span_end, span_first, span_last,
        layers, capacity, max_blocks, splits, memory,
        HEADS, HEADS_PAD, SPLITS_PAD, BLOCK, TILE_BLOCKS, FUSED,
    )  # fmt: skip
    decision, cosine = decide(dot, norm_now, norm_before, known, first_step, mode, threshold)
    wanted = tl.load(keep_table + tl.sum(visual_count, 0))

    # The keys of all tokens are read by all threads.
    tl.debug_barrier()
    begin, end = span_first * BLOCK, span_last * BLOCK
    last, ties = 0, 0
    if decision == RESELECT:
        last, ties = last_wanted(ranked + line, wanted, begin, end, TILE)
    listed = list_tokens(
        keys, ranked + line, state_keep, out_slots + line, decision, length, last, ties,
        begin, end, layers, BLOCK, TILE,
    )  # fmt: skip

    tl.store(out_lengths + row, listed)
    tl.store(decisions + row, decision, mask=decode)
    tl.store(similarities + row, cosine, mask=decode)
    tl.atomic_add(counters + decision, tl.full([], 1, tl.int64), mask=decode)
    tl.store(record + 3, steps + 1, mask=known)
    unmark_fed_token(state_visual, keys, length, prompt, decode, layers, capacity, BLOCK)


def token_select_constants(heads: int, tokens_per_block: int, *, fused: bool) -> dict[str, int]:
    """Scored at a time: TILE tokens, or as many as 64 logits per thread allow."""
    tokens = min(TILE, 64 * 32 * WARPS // padded(heads)) if fused else TILE
    return {
        "HEADS": heads, "HEADS_PAD": padded(heads), "SPLITS_PAD": MOST_SPLITS,
        "BLOCK": tokens_per_block, "TILE_BLOCKS": max(1, tokens // tokens_per_block),
        "TILE": TILE, "FUSED": fused,
    }  # fmt: skip


@dataclass
class TokenSelectionOutput:
    """Where a step's selection goes; layers >= l attend to the first `lengths` of `slots`.

    counters: how often each `Decision` was taken, over all steps.
    """

    slots: Tensor  # int32 [S, M * B], block * B + token in the block, in logical order
    lengths: Tensor  # int32 [S]
    decision: Tensor  # int32 [S]
    similarity: Tensor  # fp32 [S]
    counters: Tensor  # int64 [decisions]
    ranked: Tensor  # int32 [S, M * B], scratch: keys of visual tokens (kernels/top.py)

    @classmethod
    def allocate(
        cls, sequences: int, max_blocks: int, tokens_per_block: int, device: torch.device | str
    ) -> TokenSelectionOutput:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        tokens = max_blocks * tokens_per_block
        return cls(
            zeros(sequences, tokens), zeros(sequences), zeros(sequences),
            zeros(sequences, dtype=torch.float32), zeros(len(Decision), dtype=torch.int64),
            zeros(sequences, tokens),
        )  # fmt: skip


def select_tokens(
    state: ReselectionState,
    table: Tensor,
    lengths: Tensor,
    prompt_lengths: Tensor,
    workspace: ScoreWorkspace,
    keep_table: Tensor,
    out: TokenSelectionOutput,
    *,
    layers: int,
    mode: GateMode = GateMode.REUSE,
    threshold: float = 0.9,
    memory: float = 0.0,
    scores: Tensor | None = None,
) -> None:
    """Gate and select one decode step of S sequences; updates `state`, of tokens, in place.

    table: int32 [S, 2, M]; lengths, prompt_lengths: int32 [S], lengths with the fed token, 0 for
    an unused lane; keep_table: `token_keep_table(p, >= visual tokens)`; layers: of the pool, whose
    tokens an int32 can count. The workspace was filled by `score_logits`; if `scores` (fp32
    [S, M * B]) are given, it is not read.
    """
    check_int32(table=table, lengths=lengths, prompt_lengths=prompt_lengths, keep_table=keep_table)
    sequences, _, max_blocks = table.shape
    token_select_kernel[(sequences,)](
        workspace.logits if scores is None else scores, workspace.maxima, workspace.sums,
        table, lengths, prompt_lengths, keep_table,
        state.scores, state.average, state.visual.view(torch.uint8), state.keep.view(torch.uint8),
        state.record, out.ranked, out.slots, out.lengths, out.decision, out.similarity,
        out.counters, layers, state.num_blocks, max_blocks, workspace.splits, int(mode),
        threshold, memory,
        **token_select_constants(workspace.heads, state.tokens_per_block, fused=scores is None),
        num_warps=WARPS,
    )  # fmt: skip
