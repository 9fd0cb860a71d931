"""Decode steps on a CPU: the lanes as one batch of the forward pass, pruned by core/."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...arch.operators import TorchOperators
from ...arch.qwen2 import Qwen2, Weights
from ...arch.spec import DecoderSpec
from ...core.config import DyCokeConfig
from ...core.pool import encode_table
from ...core.state import ReselectionState
from ..attention.cpu import CpuCache, DecodeStep
from ..attention.pruning import Pruner, PruningTables
from ..blocks import blocks_for
from ..runner import ModelRunner, pruning_state
from ..selection import SelectionCounts, Trace
from ..steps import Lane, StepLogits


class BatchDecoder:
    """selection: what was selected so far."""

    def __init__(
        self, model: Qwen2, cache: CpuCache, config: DyCokeConfig, state: ReselectionState | None
    ) -> None:
        self.model, self.cache, self.config, self.state = model, cache, config, state
        self.selection = SelectionCounts()
        if state is not None:
            layout = cache.layout
            self._tables = PruningTables(config, layout.num_blocks, layout.tokens_per_block)

    def step(self, lanes: list[Lane], trace: Trace | None = None) -> StepLogits:
        model, device = self.model, self.model.device
        width = max(blocks_for(lane.length, self.cache.layout.tokens_per_block) for lane in lanes)
        padded = [lane.blocks[:width] + [0] * (width - len(lane.blocks)) for lane in lanes]
        blocks = torch.tensor(padded, device=device)
        lengths = torch.tensor([lane.length for lane in lanes], device=device)
        fed = torch.tensor([lane.token for lane in lanes], device=device)
        pruner = None
        if self.state is not None:
            prompts = torch.tensor([lane.prompt_length for lane in lanes], device=device)
            pruner = Pruner(
                self.config,
                self.state,
                self._tables,
                blocks,
                prompts,
                model.config.layers,
                trace,
                self.selection,
            )
        table = encode_table(blocks, model.config.layers).long()
        attention = DecodeStep(self.cache, table, lengths, pruner)
        residual, delta = model.forward(model.embed(fed), attention)
        return StepLogits(model.logits(residual + delta))


def cpu_runner(
    llm: DecoderSpec,
    weights: Weights,
    num_blocks: int,
    tokens_per_block: int,
    config: DyCokeConfig,
    *,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> ModelRunner:
    """The model on the CPU with an empty pool. reduce: as for `Qwen2`."""
    model, embedding = Qwen2(llm, weights, TorchOperators(), reduce=reduce), weights.embedding
    cache = CpuCache(llm, num_blocks, tokens_per_block, embedding.dtype, embedding.device)
    state = pruning_state(cache, config)
    return ModelRunner(model, cache, state, BatchDecoder(model, cache, config, state))
