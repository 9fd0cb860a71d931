"""Attention over the paged pool on a GPU, by kernels/; the CPU's (cpu.py) is the reference.

In Triton's interpreter (TRITON_INTERPRET=1) it runs on CPU tensors, which is how it is tested
without a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from ...arch.spec import DecoderSpec
from ...core.config import DyCokeConfig
from ...core.errors import DyCokeError
from ...core.pool import KEY, VALUE, PoolLayout, gather
from ...core.state import ReselectionState
from ...kernels.attention import AttentionWorkspace, paged_attention
from ...kernels.interpreter import INTERPRETED
from ...kernels.reorder import reorder_pool
from ...kernels.rotary import rotary, rotary_table
from ...kernels.score import ScoreWorkspace, score_logits
from ...kernels.select import SelectionOutput, select
from ...kernels.token_attention import token_attention
from ...kernels.token_select import TokenSelectionOutput, select_tokens


class Rows(NamedTuple):
    """Which sequences a packed forward pass is of: int32 on the device.

    The first `context_rows` rows are prompt chunks of context_lengths tokens, the others decode.
    """

    table: Tensor  # [S, 2, M]
    lengths: Tensor  # [S]
    context_lengths: Tensor  # [S]
    context_rows: int = 0


class CudaCache:
    """The KV pool of one rank on a GPU, and how prompts and decode steps attend to it.

    Raises DyCokeError for a device that no kernel runs on.
    """

    def __init__(
        self,
        config: DecoderSpec,
        num_blocks: int,
        tokens_per_block: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if device.type != "cuda" and not INTERPRETED:
            raise DyCokeError(
                f"the device backend cannot run on {device.type}; allowed: cuda, or "
                "TRITON_INTERPRET=1 for tests"
            )
        self.config = config
        self.layout = PoolLayout(
            num_blocks, config.layers, config.kv_heads, tokens_per_block, config.head_dim
        )
        self.pool = torch.zeros(self.layout.shape, dtype=dtype, device=device)
        self._cos_sin = rotary_table(
            config.max_positions, config.head_dim, config.rope_theta, device
        )

    def chunk(self, table: Tensor, past: int, count: int) -> PromptChunk:
        return PromptChunk(self, table, past, count)

    def rotate(self, layer: int, qkv: Tensor, rows: Rows) -> Tensor:
        """q | k rotated, [n, heads + 2 kv heads, D]; k and v are written to the pool."""
        rotated = torch.empty_like(qkv)
        rotary(
            qkv, rotated, self._cos_sin, rows.lengths, rows.context_lengths,
            heads=self.config.heads, kv_heads=self.config.kv_heads,
            context_rows=rows.context_rows, pool=self.pool, table=rows.table, layer=layer,
        )  # fmt: skip
        return rotated


class PromptChunk:
    """`Attention` of `count` tokens of one prompt behind `past` others. table: int32 [1, 2, M]."""

    def __init__(self, cache: CudaCache, table: Tensor, past: int, count: int) -> None:
        self._cache, self._past, self._count = cache, past, count
        length = torch.tensor([past + count], dtype=torch.int32, device=table.device)
        chunk = torch.tensor([count], dtype=torch.int32, device=table.device)
        self._rows = Rows(table.contiguous(), length, chunk, 1)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        past, count, rows = self._past, self._count, self._rows
        heads, kv_heads = self._cache.config.heads, self._cache.config.kv_heads
        rotated = self._cache.rotate(layer, qkv, rows)
        query = rotated[:, :heads].transpose(0, 1)[None]
        if past == 0:
            keys = rotated[:, heads : heads + kv_heads].transpose(0, 1)[None]
            values = qkv[:, heads + kv_heads :].transpose(0, 1)[None]
            out = scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)
        else:
            keys, values = (
                gather(self._cache.pool, rows.table, layer, field)[:, : past + count]
                .transpose(1, 2)
                .repeat_interleave(heads // kv_heads, dim=1)
                for field in (KEY, VALUE)
            )
            mask = causal_lower_right(count, past + count)
            out = scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return out[0].transpose(0, 1).reshape(count, -1)


class KernelPruner(NamedTuple):
    """Scores and selects blocks on the device; what it selected stays in `selection`. In order of
    importance K and V of the scoring layer and those above it move within the pool."""

    config: DyCokeConfig
    state: ReselectionState
    keep_table: Tensor  # of block_keep_table
    scores: ScoreWorkspace
    selection: SelectionOutput

    def select(self, layer: int, rotated: Tensor, cache: CudaCache, rows: Rows) -> None:
        score_logits(rotated, cache.pool, rows.table, rows.lengths, self.scores, layer=layer)
        select(
            self.state, rows.table, rows.lengths, rows.context_lengths, self.scores,
            self.keep_table, self.selection, layers=cache.config.layers, mode=self.config.gate_mode,
            threshold=self.config.gate_threshold, reduce=self.config.block_reduce,
            memory=self.config.memory, order=self.config.order, padding=False,
        )  # fmt: skip
        if self.config.order == "importance":
            reorder_pool(cache.pool, rows.table, self.scores, first_layer=layer)

    def attend(
        self, layer: int, rotated: Tensor, cache: CudaCache, out: Tensor, work: AttentionWorkspace
    ) -> None:
        """Attention of a layer >= l to what was selected."""
        paged_attention(
            rotated, cache.pool, self.selection.table, self.selection.lengths, out, work,
            heads=cache.config.heads, layer=layer,
        )  # fmt: skip


class TokenPruner(NamedTuple):
    """The same at token granularity."""

    config: DyCokeConfig
    state: ReselectionState
    keep_table: Tensor  # of token_keep_table
    scores: ScoreWorkspace
    selection: TokenSelectionOutput

    def select(self, layer: int, rotated: Tensor, cache: CudaCache, rows: Rows) -> None:
        score_logits(rotated, cache.pool, rows.table, rows.lengths, self.scores, layer=layer)
        select_tokens(
            self.state, rows.table, rows.lengths, rows.context_lengths, self.scores,
            self.keep_table, self.selection, layers=cache.config.layers, mode=self.config.gate_mode,
            threshold=self.config.gate_threshold, memory=self.config.memory,
        )  # fmt: skip

    def attend(
        self, layer: int, rotated: Tensor, cache: CudaCache, out: Tensor, work: AttentionWorkspace
    ) -> None:
        token_attention(
            rotated, cache.pool, self.selection.slots, self.selection.lengths, out, work,
            heads=cache.config.heads, layer=layer,
        )  # fmt: skip


class DecodeStep:
    """`Attention` of one token of each row; context_lengths are the rows' prompt lengths.

    Launches only: nothing is read back, so that a CUDA graph can hold it.
    """

    def __init__(
        self,
        cache: CudaCache,
        rows: Rows,
        workspace: AttentionWorkspace,
        pruner: KernelPruner | TokenPruner | None,
    ) -> None:
        self._cache, self._rows, self._workspace, self._pruner = cache, rows, workspace, pruner

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        cache, config, pruner, rows = self._cache, self._cache.config, self._pruner, self._rows
        rotated = cache.rotate(layer, qkv, rows)
        if pruner is not None and layer == pruner.config.scoring_layer:
            pruner.select(layer, rotated, cache, rows)
        out = qkv.new_empty(len(qkv), config.heads, config.head_dim)
        if pruner is not None and layer >= pruner.config.l:
            pruner.attend(layer, rotated, cache, out, self._workspace)
        else:
            paged_attention(
                rotated, cache.pool, rows.table, rows.lengths, out, self._workspace,
                heads=config.heads, layer=layer,
            )  # fmt: skip
        return out.flatten(1)
