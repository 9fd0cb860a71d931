"""What dynamic pruning remembers between decode steps, indexed by physical KV block.

One layout for this reference, the kernels, the native backend and the TensorRT plugin. A block
belongs to one sequence at a time, so state that lies with the blocks needs no slot allocator and no
end-of-request event: a new owner overwrites it while its prompt is written.

Per block: the previous step's score of each token and its average over the steps before, a mark
for each visual token, and whether the last selection kept the block. Per sequence, one record at
the block that holds the last prompt token: prompt length, span of the visual tokens, and how many
decode steps it has had. The record is the guard: a sequence whose record does not match is UNKNOWN
and passes through unpruned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .config import BlockReduce, Granularity, Order
from .decisions import Decision, GateMode
from .importance import averaged_scores, reorder, swaps, token_slots
from .reselection import (
    attended,
    best_tokens,
    compact_block_table,
    gate,
    prunable_blocks,
    select_blocks,
    select_tokens,
)

# Columns of a sequence's record.
PROMPT_LENGTH, SPAN_BEGIN, SPAN_END, STEPS = range(4)


@dataclass
class ReselectionState:
    """State of a pool of `num_blocks` KV blocks of B tokens.

    The tensors have one row more than the pool: row `num_blocks` takes the writes of lanes that
    have nothing to write, so that no write depends on a count known only to the device.
    """

    scores: Tensor  # fp32 [num_blocks + 1, B], scores of the preceding decode step
    average: Tensor  # fp32 [num_blocks + 1, B], averaged scores; unused without memory
    visual: Tensor  # bool [num_blocks + 1, B], marks of visual prompt tokens
    keep: Tensor  # bool [num_blocks + 1] blocks, or [num_blocks + 1, B] tokens, last selected
    record: Tensor  # int32 [num_blocks + 1, 4]: PROMPT_LENGTH, SPAN_BEGIN, SPAN_END, STEPS

    @classmethod
    def allocate(
        cls,
        num_blocks: int,
        tokens_per_block: int,
        device: torch.device | str = "cpu",
        granularity: Granularity = "block",
    ) -> ReselectionState:
        rows = num_blocks + 1
        kept = (rows,) if granularity == "block" else (rows, tokens_per_block)
        return cls(
            scores=torch.zeros(rows, tokens_per_block, device=device),
            average=torch.zeros(rows, tokens_per_block, device=device),
            visual=torch.zeros(rows, tokens_per_block, dtype=torch.bool, device=device),
            keep=torch.ones(kept, dtype=torch.bool, device=device),
            record=torch.zeros(rows, 4, dtype=torch.int32, device=device),
        )

    @property
    def num_blocks(self) -> int:
        return self.keep.shape[0] - 1

    @property
    def tokens_per_block(self) -> int:
        return self.scores.shape[1]


class Reselection(NamedTuple):
    """The outcome of one decode step for S sequences."""

    decision: Tensor  # int32 [S], of `Decision`; UNKNOWN is passed through unpruned
    similarity: Tensor  # fp32 [S]
    keep: Tensor  # bool [S, M], logical blocks that layers >= l attend to
    table: Tensor  # int [S, M], compacted physical block table
    lengths: Tensor  # int [S], compacted lengths
    order: Tensor | None  # int64 [S, M*B], of `core.importance.swaps`; None in raster order


class TokenReselection(NamedTuple):
    """The outcome of one decode step at token granularity."""

    decision: Tensor  # int32 [S]
    similarity: Tensor  # fp32 [S]
    keep: Tensor  # bool [S, M*B], what layers >= l attend to; True behind the length


def write_context(
    state: ReselectionState, blocks: Tensor, past: Tensor, lengths: Tensor, visual: Tensor
) -> None:
    """Records one prompt chunk of each sequence, in place.

    blocks: int [S, M], physical block of each logical one; entries behind the length are not read.
    past: int [S], prompt tokens already written (0 in the first chunk); lengths: int [S], past plus
    this chunk. visual: bool [S, M*B]; only positions past <= t < length are read.
    Every token of the chunk sets or clears its mark, so marks of an earlier owner do not survive. A
    chunk whose predecessor is not on record leaves its sequence UNKNOWN.
    """
    size = state.tokens_per_block
    position = torch.arange(blocks.shape[1] * size, device=blocks.device)
    chunk = (position >= past[:, None]) & (position < lengths[:, None])
    seen = visual & chunk

    state.visual[_token_index(state, blocks.long(), chunk)] = seen

    before = _last_block(blocks, past, size)  # holds the record of the preceding chunk
    previous = state.record[before]
    fresh = past == 0
    known = fresh | (previous[:, PROMPT_LENGTH] == past)
    had_span = ~fresh & (previous[:, SPAN_END] > previous[:, SPAN_BEGIN])
    has_span = seen.any(1)
    # argmax of a mask is its first True.
    first = seen.int().argmax(1)
    last = position.numel() - seen.flip(1).int().argmax(1)
    begin = torch.where(had_span, previous[:, SPAN_BEGIN], torch.where(has_span, first, 0))
    end = torch.where(has_span, last, torch.where(had_span, previous[:, SPAN_END], 0))
    length = torch.where(known, lengths, 0)
    state.record[_last_block(blocks, lengths, size)] = torch.stack(
        [length, begin, end, torch.zeros_like(length)], dim=1
    ).int()


def visual_positions(
    state: ReselectionState, blocks: Tensor, lengths: Tensor, prompt_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Which logical positions hold visual tokens: (visual bool [S, M*B], known bool [S]).

    Where `known` is False (the record is of another prompt length, so of another owner or of a
    prompt that was not seen whole) the row of `visual` is False.
    """
    size = state.tokens_per_block
    position = torch.arange(blocks.shape[1] * size, device=blocks.device)
    record = state.record[_last_block(blocks, prompt_lengths, size)]
    known = (record[:, PROMPT_LENGTH] == prompt_lengths) & (prompt_lengths > 0)
    inside = (
        (position >= record[:, SPAN_BEGIN, None])
        & (position < record[:, SPAN_END, None])
        & (position < lengths[:, None])
        & known[:, None]
    )
    return state.visual[_rows(state, blocks, lengths)].flatten(1) & inside, known


def reselect(
    state: ReselectionState,
    blocks: Tensor,
    lengths: Tensor,
    prompt_lengths: Tensor,
    scores: Tensor,
    *,
    keep_table: Tensor,
    mode: GateMode = GateMode.REUSE,
    threshold: float = 0.9,
    reduce: BlockReduce = "sum",
    memory: float = 0.0,
    order: Order = "raster",
) -> Reselection:
    """One decode step at block granularity: gate, select, compact; updates `state` in place.

    blocks: int [S, M]; lengths: int [S], including the fed token; prompt_lengths: int [S].
    scores: fp32 [S, M*B] from `visual_scores` with the mask of `visual_positions`.
    keep_table: `block_keep_table(p, >= M)`. memory: of the averaged scores that are ranked.
    order: `importance` keeps the first of the prunable blocks and moves the selected tokens there.
        `state` then describes the new order, and K and V are the caller's to move
        (`core.importance.reorder_pool`) before layers >= l attend.
    """
    size = state.tokens_per_block
    step = _gate_step(state, blocks, lengths, prompt_lengths, scores, mode, threshold, memory)
    prunable = prunable_blocks(step.visual, lengths, size)
    new_selection = (step.decision == Decision.RESELECT)[:, None]
    moves = None
    if order == "importance":
        wanted = keep_table[prunable.sum(1)][:, None]
        selected = ~prunable | (prunable.cumsum(1) <= wanted)
        last_selection = selected  # which blocks stay never changes, what lies there does
        places = step.visual & selected.repeat_interleave(size, dim=1)
        best = best_tokens(step.average, step.visual, places.sum(1))
        moves = swaps(torch.where(new_selection, best, places), places)
        _reorder_state(state, step.rows, moves)
    else:
        selected = select_blocks(step.average, prunable, keep_table, reduce)
        # Blocks that are not prunable were never selected, so their keep bits mean nothing.
        last_selection = state.keep[step.rows] | ~prunable
        state.keep[step.rows.masked_fill(~(prunable & new_selection), state.num_blocks)] = selected
    keep = attended(step.decision, selected, last_selection)
    table, shorter = compact_block_table(blocks, lengths, keep, size)
    return Reselection(step.decision, step.similarity, keep, table, shorter, moves)


def reselect_tokens(
    state: ReselectionState,
    blocks: Tensor,
    lengths: Tensor,
    prompt_lengths: Tensor,
    scores: Tensor,
    *,
    keep_table: Tensor,
    mode: GateMode = GateMode.REUSE,
    threshold: float = 0.9,
    memory: float = 0.0,
) -> TokenReselection:
    """The same at token granularity, for a state allocated with it: no table and no order changes.

    keep_table: `token_keep_table(p, >= M*B)`.
    """
    step = _gate_step(state, blocks, lengths, prompt_lengths, scores, mode, threshold, memory)
    selected = select_tokens(step.average, step.visual, keep_table)
    last_selection = state.keep[step.rows].flatten(1)
    keep = attended(step.decision, selected, last_selection) | ~step.visual

    new = step.visual & (step.decision == Decision.RESELECT)[:, None]
    state.keep[_token_index(state, step.rows, new)] = selected
    return TokenReselection(step.decision, step.similarity, keep)


class _GateStep(NamedTuple):
    decision: Tensor
    similarity: Tensor
    average: Tensor  # fp32 [S, M*B], what selection ranks; 0 outside `visual`
    visual: Tensor  # bool [S, M*B]
    rows: Tensor  # int64 [S, M], state rows of the logical blocks


def _gate_step(
    state: ReselectionState,
    blocks: Tensor,
    lengths: Tensor,
    prompt_lengths: Tensor,
    scores: Tensor,
    mode: GateMode,
    threshold: float,
    memory: float,
) -> _GateStep:
    """The gate, and what it leaves for the next step: scores, average, one more decode step."""
    visual, known = visual_positions(state, blocks, lengths, prompt_lengths)
    scores = scores.masked_fill(~visual, 0.0)
    rows = _rows(state, blocks, lengths)
    previous = state.scores[rows].flatten(1).masked_fill(~visual, 0.0)
    record = _last_block(blocks, prompt_lengths, state.tokens_per_block)
    steps = state.record[record, STEPS]
    first_step = steps == 0
    decision, similarity = gate(scores, previous, first_step, mode, threshold)
    decision = decision.masked_fill(~known, Decision.UNKNOWN)
    average = scores
    written = _token_index(state, rows, visual)
    if memory > 0:
        past = state.average[rows].flatten(1).masked_fill(~visual, 0.0)
        average = averaged_scores(scores, past, first_step, memory)
        state.average[written] = average
    state.scores[written] = scores
    state.record[record.masked_fill(~known, state.num_blocks), STEPS] = steps + 1
    return _GateStep(decision, similarity, average, visual, rows)


def _reorder_state(state: ReselectionState, rows: Tensor, order: Tensor) -> None:
    """Scores and averages follow their tokens; marks need not, visual tokens change places."""
    slots = token_slots(rows, state.tokens_per_block)
    for per_token in (state.scores, state.average):
        reorder(per_token.view(-1), order, slots)


def _token_index(state: ReselectionState, rows: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the tokens of `rows` [S, M] into a [.., B] tensor; where not `write`: the spare row.

    Unknown sequences have no visual token, so nothing of theirs is ever written.
    """
    size = state.tokens_per_block
    row = rows.repeat_interleave(size, dim=1).masked_fill(~write, state.num_blocks)
    return row, torch.arange(row.shape[1], device=row.device).remainder(size).expand_as(row)


def _last_block(blocks: Tensor, length: Tensor, size: int) -> Tensor:
    """Physical block of token length-1, int64 [S]; of token 0 where the length is 0."""
    logical = ((length - 1).clamp(min=0) // size).long()
    return blocks.gather(1, logical[:, None]).squeeze(1).long()


def _rows(state: ReselectionState, blocks: Tensor, lengths: Tensor) -> Tensor:
    """State rows of the logical blocks, int64 [S, M]; padding goes to the spare row."""
    logical = torch.arange(blocks.shape[1], device=blocks.device)
    used = logical * state.tokens_per_block < lengths[:, None]
    return torch.where(used, blocks.long(), state.num_blocks)
