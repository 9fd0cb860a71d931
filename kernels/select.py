"""Second launch of a pruned step: scores, gate, top-k, order, compaction, one program a row.

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

from ..core.config import Order
from ..core.decisions import Decision, GateMode
from ..core.state import ReselectionState
from .common import check_int32, padded, physical_block
from .gate import NOT_PRUNABLE, RESELECT, REUSE, decide, find_record, score_blocks
from .order import bring_selected, keep_first
from .score import MOST_SPLITS, ScoreWorkspace

WARPS = 16
COLUMNS = 64  # blocks ranked and moved at a time
COUNTERS = len(Decision) + 2
REORDERS = tl.constexpr(len(Decision))  # behind those of decisions
MOVED = tl.constexpr(len(Decision) + 1)


@triton.jit
def rank_among(mine, column, ranked, begin, end, COLUMNS: tl.constexpr):
    """How many of the prunable blocks begin <= i < end come before each block of `column`, whose
    scores are `mine`: those of a higher score, and of an equal one the earlier."""
    rank = tl.zeros([COLUMNS], tl.int32)
    for start in range(begin, end, COLUMNS):
        other = start + tl.arange(0, COLUMNS)
        theirs = tl.load(ranked + other, mask=other < end, other=NOT_PRUNABLE)
        ahead = (theirs[None, :] > mine[:, None]) | (
            (theirs[None, :] == mine[:, None]) & (other[None, :] < column[:, None])
        )
        ahead = ahead & (theirs >= 0)[None, :]
        rank += tl.sum(ahead.to(tl.int32), 1)
    return rank


@triton.jit
def compact(
    keys, ranked, state_keep, out, decision, used, dropped, wanted, span_first, span_last,
    layers, capacity, max_blocks, padding, remembers, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Writes a row's table to `out`: kept blocks in logical order, then the dropped ones, then the
    padding where it was. A new selection (the `wanted` best blocks) goes to the state if the state
    `remembers` which blocks were kept; if not, it is that of `keep_first`."""
    rank_end = tl.where((decision == RESELECT) & remembers, span_last, span_first)
    kept_so_far = 0
    dropped_so_far = 0
    for first in range(0, tl.where(padding != 0, max_blocks, used), COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        spanned = (column >= span_first) & (column < span_last)
        mine = tl.load(ranked + column, mask=spanned, other=NOT_PRUNABLE)
        prunable = mine >= 0
        rank = rank_among(mine, column, ranked, span_first, rank_end, COLUMNS)
        key_entry = tl.load(keys + column, mask=column < max_blocks, other=0)
        value_entry = tl.load(keys + max_blocks + column, mask=column < max_blocks, other=0)
        block = physical_block(key_entry, layers)
        chosen = tl.where(remembers, rank < wanted, mine > 0)
        owned = (column < used) & (block < capacity)
        kept = tl.load(state_keep + block, mask=owned, other=1) != 0
        kept = tl.where(decision == RESELECT, chosen, kept | (decision != REUSE))
        new = prunable & (decision == RESELECT) & remembers
        tl.store(state_keep + block, chosen.to(tl.uint8), mask=new)
        keep = (kept | ~prunable) & (column < used)
        drop = ~keep & (column < used)
        kept_place = kept_so_far + tl.cumsum(keep.to(tl.int32), 0) - 1
        drop_place = used - dropped + dropped_so_far + tl.cumsum(drop.to(tl.int32), 0) - 1
        target = tl.where(keep, kept_place, tl.where(drop, drop_place, column))
        line = out + target
        tl.store(line, key_entry, mask=column < max_blocks)
        tl.store(line + max_blocks, value_entry, mask=column < max_blocks)
        kept_so_far += tl.sum(keep.to(tl.int32), 0)
        dropped_so_far += tl.sum(drop.to(tl.int32), 0)


@triton.jit
def unmark_fed_token(
    state_visual, keys, length, prompt, decode, layers, capacity, BLOCK: tl.constexpr
):
    """The fed token is no visual one, whatever the block's former owner left in its slot."""
    entry = tl.load(keys + (length - 1) // BLOCK, mask=decode, other=0)
    block = physical_block(entry, layers)
    marked = decode & (block < capacity) & (length > prompt)
    fed = state_visual + block.to(tl.int64) * BLOCK + (length - 1) % BLOCK
    tl.store(fed, tl.full([], 0, tl.uint8), mask=marked)


@triton.jit(
    do_not_specialize=[
        "context_rows", "layers", "capacity", "max_blocks", "padding", "splits", "mode",
        "reduce_max", "importance",
    ]
)  # fmt: skip
def select_kernel(
    scores, maxima, sums, table, lengths, prompt_lengths, keep_table,
    state_scores, state_average, state_visual, state_keep, state_record, block_scores, swaps, moved,
    out_table, out_lengths, decisions, similarities, counters,
    context_rows, layers, capacity, max_blocks, padding, splits, mode, reduce_max, importance,
    threshold, memory,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr,
    BLOCK: tl.constexpr, TILE_BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """Program (row). FUSED: `scores` are the logits of kernels/score.py, else scores [S, M * B].

    padding: 1 copies the padding of every row too; 0 leaves out_table undefined behind the length.
    Context rows, unused lanes and sequences without a matching record pass through unchanged.
    memory: 0 neither reads nor writes state_average. importance: 1 for that order, 0 for raster,
    which touches `swaps` nowhere. moved: int32 [S], how many pairs of tokens changed places, listed
    in swaps, int32 [S, 2, M * B] of kernels/order.py.
    """
    row = tl.program_id(0)
    length = tl.load(lengths + row)
    prompt = tl.load(prompt_lengths + row)
    decode = (row >= context_rows) & (length > 0)
    used = tl.where(decode, tl.cdiv(length, BLOCK), 0)
    keys = table + 2 * row * max_blocks

    record, known, steps, span_begin, span_end = find_record(
        state_record, keys, prompt, length, decode, layers, capacity, BLOCK
    )
    first_step = steps == 0

    span_first = span_begin // BLOCK
    span_last = tl.where(span_end > span_begin, tl.cdiv(span_end, BLOCK), span_first)
    dot, norm_now, norm_before, prunable_count, dropped_before = score_blocks(
        scores, maxima, sums, keys, state_scores, state_average, state_visual, state_keep,
        block_scores, row, length, decode, first_step, span_begin, span_end, span_first, span_last,
        layers, capacity, max_blocks, splits, reduce_max, memory,
        HEADS, HEADS_PAD, SPLITS_PAD, BLOCK, TILE_BLOCKS, FUSED,
    )  # fmt: skip
    decision, cosine = decide(dot, norm_now, norm_before, known, first_step, mode, threshold)
    prunable_total = tl.sum(prunable_count, 0)
    wanted = tl.load(keep_table + prunable_total)
    # In order of importance the first blocks are kept in every pruned step.
    first_stay = importance != 0
    prunes = (decision == RESELECT) | (first_stay & (decision == REUSE))
    dropped = tl.where(prunes, prunable_total - wanted, 0)
    dropped = tl.where(~prunes & (decision == REUSE), tl.sum(dropped_before, 0), dropped)

    # What was written of all blocks and tokens is read by all threads.
    tl.debug_barrier()
    ranked = block_scores + row * max_blocks
    pairs = tl.full([], 0, tl.int32)
    if first_stay:
        keep_first(ranked, wanted, span_first, span_last, COLUMNS)
        tl.debug_barrier()
        if (decision == RESELECT) & (wanted < prunable_total):
            max_tokens = max_blocks * BLOCK
            pairs = bring_selected(
                swaps + row.to(tl.int64) * (2 * max_tokens), ranked, keys, state_scores,
                state_average, state_visual, span_begin, span_end,
                layers, capacity, max_tokens, memory, BLOCK,
            )  # fmt: skip
    compact(
        keys, ranked, state_keep, out_table + 2 * row * max_blocks,
        tl.where(prunes, RESELECT, decision), used, dropped, wanted, span_first, span_last,
        layers, capacity, max_blocks, padding, importance == 0, COLUMNS,
    )  # fmt: skip

    tl.store(moved + row, pairs)
    tl.store(out_lengths + row, length - BLOCK * dropped)
    tl.store(decisions + row, decision, mask=decode)
    tl.store(similarities + row, cosine, mask=decode)
    tl.atomic_add(counters + decision, tl.full([], 1, tl.int64), mask=decode)
    tl.atomic_add(counters + REORDERS, tl.full([], 1, tl.int64), mask=pairs > 0)
    tl.atomic_add(counters + MOVED, 2 * pairs.to(tl.int64), mask=pairs > 0)
    tl.store(record + 3, steps + 1, mask=known)
    unmark_fed_token(state_visual, keys, length, prompt, decode, layers, capacity, BLOCK)


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

    counters: over all steps, how often each `Decision` was taken, how often tokens of a row changed
    places, and how many did.
    """

    table: Tensor  # int32 [S, 2, M]
    lengths: Tensor  # int32 [S]
    decision: Tensor  # int32 [S], of decode rows
    similarity: Tensor  # fp32 [S], of decode rows
    counters: Tensor  # int64 [COUNTERS]

    @classmethod
    def allocate(
        cls, sequences: int, max_blocks: int, device: torch.device | str
    ) -> SelectionOutput:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            zeros(sequences, 2, max_blocks), zeros(sequences), zeros(sequences),
            zeros(sequences, dtype=torch.float32), zeros(COUNTERS, dtype=torch.int64),
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
    memory: float = 0.0,
    order: Order = "raster",
    scores: Tensor | None = None,
    context_rows: int = 0,
    padding: bool = True,
) -> None:
    """Gate, select and compact one step of S sequences; updates `state` in place.

    table: int32 [S, 2, M]; lengths, prompt_lengths: int32 [S], lengths with the fed token, 0 for
    an unused lane; keep_table: `block_keep_table(p, >= M)`; layers: of the pool. The workspace was
    filled by `score_logits`; if `scores` (fp32 [S, M * B]) are given, its logits are not read.
    Without `padding` only what lies before the length of a decode row is written to out.table.
    memory, order: as for core's `reselect`; in order of importance `reorder_pool`
    (kernels/reorder.py) has to follow.
    """
    check_int32(table=table, lengths=lengths, prompt_lengths=prompt_lengths, keep_table=keep_table)
    sequences, _, max_blocks = table.shape
    select_kernel[(sequences,)](
        workspace.logits if scores is None else scores, workspace.maxima, workspace.sums,
        table, lengths, prompt_lengths, keep_table,
        state.scores, state.average, state.visual.view(torch.uint8), state.keep.view(torch.uint8),
        state.record, workspace.blocks, workspace.swaps, workspace.moved,
        out.table, out.lengths, out.decision, out.similarity, out.counters,
        context_rows, layers, state.num_blocks, max_blocks, int(padding), workspace.splits,
        int(mode), int(reduce == "max"), int(order == "importance"), threshold, memory,
        **select_constants(workspace.heads, state.tokens_per_block, fused=scores is None),
        num_warps=WARPS,
    )  # fmt: skip
