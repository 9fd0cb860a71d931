"""The model on a GPU, as a runner."""

from __future__ import annotations

from ...core.config import DyCokeConfig
from ..runner import ModelRunner, pruning_state
from .device import DeviceQwen2
from .graphs import GraphDecoder
from .weights import LlmConfig, Weights


def cuda_runner(
    llm: LlmConfig,
    weights: Weights,
    num_blocks: int,
    tokens_per_block: int,
    config: DyCokeConfig,
    *,
    max_batch: int = 16,
) -> ModelRunner:
    """The model where its weights lie, with an empty pool. max_batch: lanes of the largest graph.

    Raises DyCokeError for a device that is no GPU, and for token granularity.
    """
    model = DeviceQwen2(llm, weights, num_blocks, tokens_per_block)
    state = pruning_state(model, config)
    return ModelRunner(model, state, GraphDecoder(model, config, state, max_batch))
