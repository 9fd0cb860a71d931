"""Second launch of a pruned step: scores, gate, block scores, top-k, compaction, one program a row.

What it computes is core/state.py's `reselect`, on the same state: decisions, keep bits, compacted
table and lengths are equal; scores and cosine are fp32 sums in another order, so they differ in the
last bits, and decisions may where the reference itself stands within such a difference of a tie.
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
from .score import MOST_SPLITS, ScoreWorkspace, head_statistics, head_sum

# Triton sees globals only as constexpr, and those as plain numbers.
FULL = tl.constexpr(Decision.FULL.value)
REUSE = tl.constexpr(Decision.REUSE.value)
RESELECT = tl.constexpr(Decision.RESELECT.value)
UNKNOWN = tl.constexpr(Decision.UNKNOWN.value)
GATE_FULL = tl.constexpr(GateMode.FULL.value)
GATE_ALWAYS = tl.constexpr(GateMode.ALWAYS.value)
GATE_ONCE = tl.constexpr(GateMode.ONCE.value)
WARPS = 16
COLUMNS = 64  # blocks ranked and moved at a time
NOT_PRUNABLE = tl.constexpr(-1.0)  # scores are sums of probabilities, so never negative


@triton.jit(
    do_not_specialize=[
        "context_rows", "layers", "capacity", "max_blocks", "padding", "splits", "mode",
        "reduce_max",
    ]
)  # fmt: skip
def select_kernel(
    scores, maxima, sums, table, lengths, prompt_lengths, keep_table,
    state_scores, state_visual, state_keep, state_record, block_scores,
    out_table, out_lengths, decisions, similarities, counters,
    context_rows, layers, capacity, max_blocks, padding, splits, mode, reduce_max, threshold,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr,
    BLOCK: tl.constexpr, TILE_BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """Program (row). FUSED: `scores` are the logits of kernels/score.py, else scores [S, M * B].

    padding: 1 copies the padding of every row too; 0 leaves out_table undefined behind the length.
    Context rows, unused lanes and sequences without a matching record pass through unchanged.
    """
    row = tl.program_id(0)
    length = tl.load(lengths + row)
    prompt = tl.load(prompt_lengths + row)
    decode = (row >= context_rows) & (length > 0)
    used = tl.where(decode, tl.cdiv(length, BLOCK), 0)
    tail = (length - 1) // BLOCK
    keys = table + 2 * row * max_blocks

    # The record of this sequence, at the block of its last prompt token.
    prompted = decode & (prompt > 0) & (prompt <= length)
    last = tl.load(keys + tl.maximum(prompt - 1, 0) // BLOCK, mask=prompted, other=0)
    key = physical_block(last, layers)
    record = state_record + key.to(tl.int64) * 4
    # Here and below, loads do not wait for what the one before says: one program runs alone, so
    # every load in a row costs its whole latency. What does not count is dropped afterwards.
    inside_state = prompted & (key < capacity)
    recorded = tl.load(record, mask=inside_state, other=0)
    span_begin = tl.load(record + 1, mask=inside_state, other=0)
    span_end = tl.load(record + 2, mask=inside_state, other=0)
    first_step = tl.load(record + 3, mask=inside_state, other=1) > 0
    known = inside_state & (recorded == prompt)
    span_begin = tl.where(known, span_begin, 0)
    span_end = tl.where(known, tl.minimum(span_end, length), 0)

    # Scores of the visual tokens, tile by tile: gate sums, block scores, the state's new scores.
    span_first = span_begin // BLOCK
    span_last = tl.where(span_end > span_begin, tl.cdiv(span_end, BLOCK), span_first)
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
        slot = tl.arange(0, BLOCK)
        here = column < span_last
        block = physical_block(tl.load(keys + column, mask=here, other=0), layers)
        owned = here & (block < capacity)
        position = column[:, None] * BLOCK + slot[None, :]
        spanned = owned[:, None] & (position >= span_begin) & (position < span_end)
        place = block.to(tl.int64)[:, None] * BLOCK + slot[None, :]
        visual = tl.load(state_visual + place, mask=spanned, other=0) != 0
        before = tl.load(state_scores + place, mask=spanned & ~first_step, other=0.0)
        kept = tl.load(state_keep + block, mask=owned, other=1) != 0
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
        # Threads may hold copies of an element: all have read the old score before one writes.
        tl.debug_barrier()
        tl.store(state_scores + place, now, mask=visual)
        dot += now * before
        norm_now += now * now
        norm_before += before * before

        prunable = (tl.sum(visual.to(tl.int32), 1) == BLOCK) & (column < tail)
        merged = tl.where(reduce_max != 0, tl.max(now, 1), tl.sum(now, 1))
        # What is not a number ranks first, as in torch's descending sort.
        merged = tl.where(merged == merged, merged, float("inf"))
        merged = tl.where(prunable, merged, NOT_PRUNABLE)
        tl.store(block_scores + row * max_blocks + column, merged, mask=here)
        prunable_count += prunable.to(tl.int32)
        dropped_before += (prunable & ~kept).to(tl.int32)

    # Gate.
    norms = tl.sqrt(tl.sum(tl.sum(norm_now, 1), 0)) * tl.sqrt(tl.sum(tl.sum(norm_before, 1), 0))
    cosine = tl.where(norms > 0, tl.sum(tl.sum(dot, 1), 0) / tl.where(norms > 0, norms, 1.0), 0.0)
    stable = (((cosine >= threshold) & (mode != GATE_ALWAYS)) | (mode == GATE_ONCE)) & ~first_step
    decision = tl.where(stable, tl.where(mode == GATE_FULL, FULL, REUSE), RESELECT)
    decision = tl.where(known, decision, UNKNOWN)
    prunable_total = tl.sum(prunable_count, 0)
    wanted = tl.load(keep_table + prunable_total)
    dropped = tl.where(decision == RESELECT, prunable_total - wanted, 0)
    dropped = tl.where(decision == REUSE, tl.sum(dropped_before, 0), dropped)

    # Selection and compaction. The scores of all blocks are read by all threads.
    tl.debug_barrier()
    ranked = block_scores + row * max_blocks
    rank_end = tl.where(decision == RESELECT, span_last, span_first)
    kept_so_far = 0
    dropped_so_far = 0
    for first in range(0, tl.where(padding != 0, max_blocks, used), COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        spanned = (column >= span_first) & (column < span_last)
        mine = tl.load(ranked + column, mask=spanned, other=NOT_PRUNABLE)
        prunable = mine >= 0
        rank = tl.zeros([COLUMNS], tl.int32)
        for start in range(span_first, rank_end, COLUMNS):
            other = start + tl.arange(0, COLUMNS)
            theirs = tl.load(ranked + other, mask=other < rank_end, other=NOT_PRUNABLE)
            ahead = (theirs[None, :] > mine[:, None]) | (
                (theirs[None, :] == mine[:, None]) & (other[None, :] < column[:, None])
            )
            ahead = ahead & (theirs >= 0)[None, :]
            rank += tl.sum(ahead.to(tl.int32), 1)
        key_entry = tl.load(keys + column, mask=column < max_blocks, other=0)
        value_entry = tl.load(keys + max_blocks + column, mask=column < max_blocks, other=0)
        block = physical_block(key_entry, layers)
        chosen = rank < wanted
        owned = (column < used) & (block < capacity)
        kept = tl.load(state_keep + block, mask=owned, other=1) != 0
        kept = tl.where(decision == RESELECT, chosen, kept | (decision != REUSE))
        tl.store(state_keep + block, chosen.to(tl.uint8), mask=prunable & (decision == RESELECT))
        keep = (kept | ~prunable) & (column < used)
        drop = ~keep & (column < used)
        # Kept blocks in logical order, then the dropped ones, then the padding where it was.
        kept_place = kept_so_far + tl.cumsum(keep.to(tl.int32), 0) - 1
        drop_place = used - dropped + dropped_so_far + tl.cumsum(drop.to(tl.int32), 0) - 1
        target = tl.where(keep, kept_place, tl.where(drop, drop_place, column))
        line = out_table + 2 * row * max_blocks + target
        tl.store(line, key_entry, mask=column < max_blocks)
        tl.store(line + max_blocks, value_entry, mask=column < max_blocks)
        kept_so_far += tl.sum(keep.to(tl.int32), 0)
        dropped_so_far += tl.sum(drop.to(tl.int32), 0)

    tl.store(out_lengths + row, length - BLOCK * dropped)
    tl.store(decisions + row, decision, mask=decode)
    tl.store(similarities + row, cosine, mask=decode)
    tl.atomic_add(counters + decision, tl.full([], 1, tl.int64), mask=decode)
    tl.store(record + 3, 0, mask=known)
    # The fed token is no visual one, whatever the block's former owner left in its slot.
    fed_block = physical_block(tl.load(keys + tail, mask=decode, other=0), layers)
    marked = decode & (fed_block < capacity) & (length > prompt)
    fed = state_visual + fed_block.to(tl.int64) * BLOCK + (length - 1) % BLOCK
    tl.store(fed, tl.full([], 0, tl.uint8), mask=marked)


def select_constants(heads: int, tokens_per_block: int, *, fused: bool) -> dict[str, int]:
    """Scored at a time: 1024 tokens, or as many as 64 logits per thread allow."""
    tokens = min(1024, 64 * 32 * WARPS // padded(heads)) if fused else 1024
    return {
        "HEADS": heads, "HEADS_PAD": padded(heads), "SPLITS_PAD": MOST_SPLITS,
        "BLOCK": tokens_per_block, "TILE_BLOCKS": max(1, tokens // tokens_per_block),
        "COLUMNS": COLUMNS, "FUSED": fused,
    }  # fmt: skip


@dataclass
class SelectionOutput:
    """Where a step's selection goes; layers >= l read table and lengths.

    counters: how often each `Decision` was taken, over all steps.
    """

    table: Tensor  # int32 [S, 2, M]
    lengths: Tensor  # int32 [S]
    decision: Tensor  # int32 [S], of decode rows
    similarity: Tensor  # fp32 [S], of decode rows
    counters: Tensor  # int64 [decisions]

    @classmethod
    def allocate(
        cls, sequences: int, max_blocks: int, device: torch.device | str
    ) -> SelectionOutput:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            zeros(sequences, 2, max_blocks), zeros(sequences), zeros(sequences),
            zeros(sequences, dtype=torch.float32), zeros(len(Decision), dtype=torch.int64),
        )  # fmt: skip


def select(
    state: ReselectionState,
    table: Tensor,
    lengths: Tensor,
    prompt_lengths: Tensor,
    workspace: ScoreWorkspace,
    keep_table: Tensor,
    out: SelectionOutput,
    *,
    layers: int,
    mode: GateMode = GateMode.REUSE,
    threshold: float = 0.9,
    reduce: str = "sum",
    scores: Tensor | None = None,
    context_rows: int = 0,
    padding: bool = True,
) -> None:
    """Gate, select and compact one step of S sequences; updates `state` in place.

    table: int32 [S, 2, M]; lengths, prompt_lengths: int32 [S], lengths with the fed token, 0 for
    an unused lane; keep_table: `block_keep_table(p, >= M)`; layers: of the pool. The workspace was
    filled by `score_logits`; if `scores` (fp32 [S, M * B]) are given, only its block scores serve.
    Without `padding` only what lies before the length of a decode row is written to out.table.
    """
    check_int32(table=table, lengths=lengths, prompt_lengths=prompt_lengths, keep_table=keep_table)
    sequences, _, max_blocks = table.shape
    select_kernel[(sequences,)](
        workspace.logits if scores is None else scores, workspace.maxima, workspace.sums,
        table, lengths, prompt_lengths, keep_table,
        state.scores, state.visual.view(torch.uint8), state.keep.view(torch.uint8), state.record,
        workspace.blocks, out.table, out.lengths, out.decision, out.similarity, out.counters,
        context_rows, layers, state.num_blocks, max_blocks, int(padding), workspace.splits,
        int(mode), int(reduce == "max"), threshold,
        **select_constants(workspace.heads, state.tokens_per_block, fused=scores is None),
        num_warps=WARPS,
    )  # fmt: skip
