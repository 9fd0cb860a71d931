"""Dynamic pruning of one decode step of a batch, by the functions of core/."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.config import DyCokeConfig
from ...core.decisions import Decision
from ...core.pool import encode_table
from ...core.reselection import block_keep_table, token_keep_table, visual_scores
from ...core.state import (
    Reselection,
    ReselectionState,
    TokenReselection,
    reselect,
    reselect_tokens,
    visual_positions,
)
from ..selection import SelectionCounts, StepTrace, Trace


class Selection(NamedTuple):
    """What layers >= l attend to: the arguments of DecodeContext."""

    table: Tensor  # int64 [S, 2, M], compacted
    lengths: Tensor  # int64 [S], through `table`, the fed token included
    mask: Tensor | None = None  # bool [S, M * B]; None for blocks, which leave the table instead


class Scores(NamedTuple):
    """A step's scores, fp32 [S, T], and where they are of visual tokens, bool [S, T]."""

    blocks: Tensor  # int64 [S, blocks in use]
    visual: Tensor
    scores: Tensor


def move_tokens(pool: Tensor, target: Tensor, source: Tensor, first_layer: int) -> None:
    """K and V of tokens in all layers from `first_layer` on, from slots to other slots, in place.

    pool: [num_blocks, L, 2, Hkv, B, D]; target, source: int64 [n], block * B + slot, the same slots
    in another order. The same as `core.importance.reorder_pool`, which copies all to move a few.
    """
    _, layers, _, kv_heads, size, dim = pool.shape
    rows = pool.view(-1, dim)  # one per block, layer, K or V, head and slot
    plane = torch.arange(2 * kv_heads, device=pool.device)

    def of_layer_0(slot: Tensor) -> Tensor:
        block, within = slot // size, slot % size
        slab = block[:, None] * (2 * kv_heads * layers) + plane
        return (slab * size + within[:, None]).flatten()

    to, origin = of_layer_0(target), of_layer_0(source)
    # Layer by layer: a copy of all at once would come as untouched pages.
    for layer in range(first_layer, layers):
        of_layer = rows[2 * kv_heads * size * layer :]
        of_layer.index_copy_(0, to, of_layer.index_select(0, origin))


class PruningTables:
    """The counts that selection needs, computed once per pool."""

    def __init__(self, config: DyCokeConfig, max_blocks: int, tokens_per_block: int) -> None:
        if config.granularity == "block":
            self.keep_table = block_keep_table(config.p, max_blocks)
        else:
            self.keep_table = token_keep_table(config.p, max_blocks * tokens_per_block)


class Pruner:
    """One decode step of S sequences.

    blocks: int64 [S, M] physical blocks; prompt_lengths: int64 [S]; layers: of the pool.
    """

    def __init__(
        self,
        config: DyCokeConfig,
        state: ReselectionState,
        tables: PruningTables,
        blocks: Tensor,
        prompt_lengths: Tensor,
        layers: int,
        trace: Trace | None = None,
        counts: SelectionCounts | None = None,
    ) -> None:
        self._counts = counts or SelectionCounts()
        self._begun = 0.0
        self.scoring_layer = config.scoring_layer
        self.first_pruned_layer = config.l
        self._config = config
        self._state = state
        self._tables = tables
        self._blocks = blocks
        self._prompt_lengths = prompt_lengths
        self._layers = layers
        self._trace = trace

    def score(self, query: Tensor, new_key: Tensor, keys: Tensor, lengths: Tensor) -> Scores:
        """query: [S, Hq, D]; new_key: [S, Hkv, D], the fed token's; keys: [S, Hkv, T, D] of the
        scoring layer, all blocks in use; lengths: int64 [S]."""
        self._begun = time.perf_counter()
        blocks = self._blocks[:, : keys.shape[2] // self._state.tokens_per_block]
        visual, _ = visual_positions(self._state, blocks, lengths, self._prompt_lengths)
        scores = visual_scores(query, new_key, keys.transpose(1, 2), lengths, visual)
        return Scores(blocks, visual, scores)

    def select(self, scored: Scores, lengths: Tensor, pool: Tensor) -> Selection:
        """Gate and selection of this step; lengths: int64 [S]. In order of importance K and V of
        the scoring layer and those above it move within `pool`."""
        blocks, visual, scores = scored
        config, state = self._config, self._state
        sequences = (state, blocks, lengths, self._prompt_lengths, scores)
        if config.granularity == "block":
            step = reselect(
                *sequences,
                keep_table=self._tables.keep_table,
                mode=config.gate_mode,
                threshold=config.gate_threshold,
                reduce=config.block_reduce,
                memory=config.memory,
                order=config.order,
            )
            if step.order is not None:
                self._move(step.order, blocks, pool)
                scores = scores.gather(1, step.order)
            self._report(step, scores, visual)
            self._counts.add(step.decision, lengths, step.lengths, self._begun)
            return Selection(encode_table(step.table, self._layers).long(), step.lengths)
        tokens = reselect_tokens(
            *sequences,
            keep_table=self._tables.keep_table,
            mode=config.gate_mode,
            threshold=config.gate_threshold,
            memory=config.memory,
        )
        self._report(tokens, scores, visual)
        inside = torch.arange(tokens.keep.shape[1]) < lengths[:, None]
        attended = (tokens.keep & inside).sum(1)
        self._counts.add(tokens.decision, lengths, attended, self._begun)
        table = encode_table(blocks, self._layers).long()
        return Selection(table, lengths, tokens.keep)

    def _move(self, order: Tensor, blocks: Tensor, pool: Tensor) -> None:
        """order: int64 [S, T] of `core.importance.swaps`; blocks: int64 [S, T / B]."""
        places = torch.arange(order.shape[1], device=order.device)
        row, place = (order != places).nonzero(as_tuple=True)
        if len(row) == 0:
            return
        size = self._state.tokens_per_block
        target, source = (
            blocks[row, at // size] * size + at % size for at in (place, order[row, place])
        )
        move_tokens(pool, target, source, self.scoring_layer)
        self._counts.reorders += len(set(row.tolist()))
        self._counts.moved += len(row)

    def _report(self, step: Reselection | TokenReselection, scores: Tensor, visual: Tensor) -> None:
        """Calls the trace for every row. scores: fp32 [S, T], visual: bool [S, T]."""
        if self._trace is None:
            return
        kept = step.keep.repeat_interleave(scores.shape[1] // step.keep.shape[1], dim=1)
        for row in range(len(scores)):
            (span,) = visual[row].nonzero(as_tuple=True)
            order = None
            if isinstance(step, Reselection) and step.order is not None:
                order = torch.searchsorted(span, step.order[row, span])
            self._trace(
                row,
                StepTrace(
                    decision=Decision(int(step.decision[row])),
                    similarity=float(step.similarity[row]),
                    scores=scores[row, span],
                    kept=kept[row, span].nonzero()[:, 0],
                    order=order,
                ),
            )
