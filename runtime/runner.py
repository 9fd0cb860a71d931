"""Runs prompts and decode steps of a model over its KV pool, with what pruning remembers of it.

Prompts go through here alike on every device; how a decode step runs is its `Decoder`'s.
"""

from __future__ import annotations

from typing import Protocol

import torch

from ..core.config import DyCokeConfig
from ..core.pool import PoolLayout, encode_table
from ..core.state import ReselectionState, write_context
from .native.model import Qwen2
from .selection import SelectionCounts, Trace
from .steps import Chunk, Lane, StepLogits


class Decoder(Protocol):
    """Whole decode steps; called without gradients."""

    selection: SelectionCounts

    def step(self, lanes: list[Lane], trace: Trace | None = None) -> StepLogits: ...


class ModelRunner:
    """A `Runner` (runtime/steps.py). state: None where nothing is pruned."""

    def __init__(self, model: Qwen2, state: ReselectionState | None, decoder: Decoder) -> None:
        self.model = model
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
        return self.model.layout

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
        table = encode_table(blocks, model.config.layers)[0].long()
        hidden = model.prefill(model.embed(ids, chunk.embeddings), table, past)
        return StepLogits(model.logits(hidden)) if chunk.last else None

    @torch.no_grad()
    def decode(self, lanes: list[Lane], trace: Trace | None = None) -> StepLogits:
        return self.decoder.step(lanes, trace)


def pruning_state(model: Qwen2, config: DyCokeConfig) -> ReselectionState | None:
    """What pruning remembers of the model's pool; None for p = 0. Raises DyCokeError for an `l`
    that leaves no layer to prune."""
    config.check_layers(model.config.layers)
    if config.p == 0:
        return None
    return ReselectionState.allocate(
        model.layout.num_blocks, model.layout.tokens_per_block, model.device, config.granularity
    )
