"""Qwen2 over the paged pool: prefill a chunk of one prompt, or decode a token of many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from ...core.pool import KEY, VALUE, PoolLayout
from ..stages import ATTENTION, SCORE, SELECT
from .attention import DecodeContext, gather, prefill_attention, write_chunk
from .linear import few_rows
from .pruning import Pruner
from .weights import LayerWeights, LlmConfig, Weights


class Qwen2:
    """The forward pass and its KV pool.

    reduce: applied to each layer's two partial sums (attention output, MLP output) before they
    join the residual: the identity on one rank, an all-reduce on several.
    """

    def __init__(
        self,
        config: LlmConfig,
        weights: Weights,
        num_blocks: int,
        tokens_per_block: int,
        *,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.device = weights.embedding.device
        self.layout = PoolLayout(
            num_blocks, config.layers, config.kv_heads, tokens_per_block, config.head_dim
        )
        dtype = weights.embedding.dtype
        self.pool = torch.zeros(self.layout.shape, dtype=dtype, device=self.device)
        self._reduce = reduce or (lambda x: x)
        half = torch.arange(0, config.head_dim, 2, device=self.device).float() / config.head_dim
        self._frequencies = config.rotary_base**-half

    def embed(self, ids: Tensor, table: Tensor | None = None) -> Tensor:
        """Embeddings [n, hidden] of int64 ids [n]; ids >= vocab are rows of `table` [V, hidden]."""
        if table is None or len(table) == 0:  # text alone
            return self.weights.embedding[ids]
        text = self.weights.embedding[ids.clamp(max=self.config.vocab - 1)]
        rows = (ids - self.config.vocab).clamp(min=0)
        return torch.where((ids >= self.config.vocab)[:, None], table[rows].to(text.dtype), text)

    def prefill(self, hidden: Tensor, table: Tensor, past: int) -> Tensor:
        """One chunk of one prompt; returns the hidden state of its last token, [1, hidden].

        hidden: [n, hidden] embeddings; table: int64 [2, M]; past: tokens already in the pool.
        """
        count = len(hidden)
        position = torch.arange(past, past + count, device=self.device)
        rotation = self._rotation(position)
        blocks = -(-(past + count) // self.layout.tokens_per_block)
        for i, layer in enumerate(self.weights.layers):
            query, key, value = self._qkv(layer, hidden, rotation)
            write_chunk(self.pool, table, i, position, key, value)
            if past == 0:
                keys, values = key.transpose(0, 1), value.transpose(0, 1)
            else:
                keys, values = (
                    gather(self.pool, table[None], i, f, blocks)[0, :, : past + count]
                    for f in (KEY, VALUE)
                )
            attended = prefill_attention(query, keys, values, past)
            hidden = self._finish(layer, hidden, attended)
        return hidden[-1:]

    def decode(
        self, hidden: Tensor, table: Tensor, lengths: Tensor, pruner: Pruner | None = None
    ) -> Tensor:
        """One token of each of S sequences: hidden [S, hidden] -> [S, hidden].

        table: int64 [S, 2, M]; lengths: int64 [S], the fed token included.
        """
        rotation = self._rotation(lengths - 1)  # the true position, whatever layers >= l attend to
        context = DecodeContext(self.pool, table, lengths)
        for i, layer in enumerate(self.weights.layers):
            query, key, value = self._qkv(layer, hidden, rotation)
            if pruner is not None and i == pruner.scoring_layer:
                # Scored before this layer's own write: the fed token's key comes from the step.
                blocks = -(-int(lengths.max()) // self.layout.tokens_per_block)
                with SCORE:
                    keys = gather(self.pool, table, i, KEY, blocks)
                    scored = pruner.score(query, key, keys, lengths)
                with SELECT:
                    selection = pruner.select(scored, lengths)
            if pruner is not None and i == pruner.first_pruned_layer:
                context = DecodeContext(self.pool, *selection)
            context.write(i, key, value)
            with ATTENTION:
                attended = context.attend(i, query)
            hidden = self._finish(layer, hidden, attended)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [n, vocab] of hidden states [n, hidden]."""
        return few_rows(self._norm(hidden, self.weights.final_norm), self.weights.lm_head).float()

    def _qkv(
        self, layer: LayerWeights, hidden: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated query [n, Hq, D], rotated key and value [n, Hkv, D] (contiguous)."""
        heads, kv_heads, dim = self.config.heads, self.config.kv_heads, self.config.head_dim
        qkv = few_rows(self._norm(hidden, layer.input_norm), layer.qkv, layer.qkv_bias)
        qkv = qkv.view(-1, heads + 2 * kv_heads, dim)
        cos, sin = rotation
        rotated = qkv[:, : heads + kv_heads].float()
        first, second = rotated.chunk(2, dim=-1)  # NeoX: the halves of the head rotate together
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        turned = turned.to(qkv.dtype)
        return turned[:, :heads], turned[:, heads:], qkv[:, heads + kv_heads :]

    def _finish(self, layer: LayerWeights, hidden: Tensor, attended: Tensor) -> Tensor:
        """Output projection, residual, MLP, residual."""
        hidden = hidden + self._reduce(few_rows(attended, layer.dense))
        gate, up = few_rows(self._norm(hidden, layer.post_norm), layer.gate_up).chunk(2, dim=-1)
        return hidden + self._reduce(few_rows(silu(gate).mul_(up), layer.down))

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(hidden, (hidden.shape[-1],), weight, self.config.norm_epsilon)

    def _rotation(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 [n, 1, D/2]."""
        angle = position.float()[:, None, None] * self._frequencies
        return angle.cos(), angle.sin()
