"""Runs prompts and decode steps of a model over its KV pool, with what pruning remembers of it.

Prompts go through here alike on every device; how a decode step runs is its `Decoder`'s.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..arch.qwen2 import Attention, Qwen2
from ..core.config import DyCokeConfig
from ..core.pool import PoolLayout, encode_table
from ..core.state import ReselectionState, write_context
from .selection import SelectionCounts, Trace
from .steps import Chunk, Lane, StepLogits


class Cache(Protocol):
    """A paged KV pool, and how the next `count` tokens of one prompt attend to it.

    table: int32 [1, 2, M] of core/pool.py; past: tokens of the prompt that are in the pool.
    """

    layout: PoolLayout
    pool: Tensor

    def chunk(self, table: Tensor, past: int, count: int) -> Attention: ...


class Decoder(Protocol):
    """Whole decode steps; called without gradients."""

    selection: SelectionCounts

    def step(self, lanes: list[Lane], trace: Trace | None = None) -> StepLogits: ...


class ModelRunner:
    """A `Runner` (runtime/steps.py). state: None where nothing is pruned."""

    def __init__(
        self, model: Qwen2, cache: Cache, state: ReselectionState | None, decoder: Decoder
    ) -> None:
        self.model = model
        self.cache = cache
        self.state = state
        self.decoder = decoder
        self.selection = decoder.selection

    @property
    def vocab(self) -> int:
        return self.model.config.vocab

    @property
    def max_positions(self) -> int:
        return self.model.config.max_positions

    @property
    def layout(self) -> PoolLayout:
        return self.cache.layout

    @torch.no_grad()
    def prefill(self, chunk: Chunk) -> StepLogits | None:
        model, past = self.model, chunk.past
        upto = past + len(chunk.ids)
        ids = torch.tensor(chunk.ids, device=model.device)
        blocks = torch.tensor([chunk.blocks], device=model.device)
        if self.state is not None:
            tokens = blocks.shape[1] * self.layout.tokens_per_block
            visual = torch.zeros(1, tokens, dtype=torch.bool, device=model.device)
            visual[0, past:upto] = ids >= self.vocab
            bounds = torch.tensor([[past], [upto]], device=model.device)
            write_context(self.state, blocks, bounds[0], bounds[1], visual)
        table = encode_table(blocks, model.config.layers)
        attention = self.cache.chunk(table, past, len(chunk.ids))
        residual, delta = model.forward(model.embed(ids, chunk.embeddings), attention)
        if not chunk.last:
            return None
        return StepLogits(model.logits(residual[-1:] + delta[-1:]))

    @torch.no_grad()
    def decode(self, lanes: list[Lane], trace: Trace | None = None) -> StepLogits:
        return self.decoder.step(lanes, trace)


def pruning_state(cache: Cache, config: DyCokeConfig) -> ReselectionState | None:
    """What pruning remembers of a pool; None for p = 0. Raises DyCokeError for an `l` that leaves
    no layer to prune."""
    layout = cache.layout
    config.check_layers(layout.layers)
    if config.p == 0:
        return None
    return ReselectionState.allocate(
        layout.num_blocks, layout.tokens_per_block, cache.pool.device, config.granularity
    )
