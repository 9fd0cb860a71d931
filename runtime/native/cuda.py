"""The model on a GPU, as a runner."""

from __future__ import annotations

from ...arch.qwen2 import Qwen2, Weights
from ...arch.spec import DecoderSpec
from ...core.config import DyCokeConfig
from ...kernels.operators import KernelOperators
from ..attention.cuda import CudaCache
from ..runner import ModelRunner, pruning_state
from .graphs import GraphDecoder


def cuda_runner(
    llm: DecoderSpec,
    weights: Weights,
    num_blocks: int,
    tokens_per_block: int,
    config: DyCokeConfig,
    *,
    max_batch: int = 16,
) -> ModelRunner:
    """The model where its weights lie, with an empty pool. max_batch: lanes of the largest graph.

    Raises DyCokeError for a device that is no GPU.
    """
    model, embedding = Qwen2(llm, weights, KernelOperators()), weights.embedding
    cache = CudaCache(llm, num_blocks, tokens_per_block, embedding.dtype, embedding.device)
    state = pruning_state(cache, config)
    return ModelRunner(model, cache, state, GraphDecoder(model, cache, config, state, max_batch))
