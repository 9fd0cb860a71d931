"""Qwen2: one forward pass over packed tokens, prompts and decode steps alike, on every device.

Which tokens they are, where their keys and values lie and what each may look at is the `Attention`
of a step; what lies between attentions are the device's `Operators`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from .spec import DecoderSpec


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. qkv: rows q | k | v; gate_up: rows gate | up, fused for one product."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(heads + 2 kv heads) * D, hidden]
    qkv_bias: Tensor  # [(heads + 2 kv heads) * D]
    dense: Tensor  # [hidden, heads * D]
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]
    down: Tensor  # [hidden, intermediate]


@dataclass(frozen=True)
class Weights:
    """All weights of one rank."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden]
    lm_head: Tensor  # [vocab, hidden]


class Attention(Protocol):
    """The attention of one forward pass, called once per layer, in order.

    qkv: [n, heads + 2 kv heads, D], the layer's projections of the pass's n tokens before RoPE.
    Returns [n, heads * D]. It rotates, writes keys and values, and attends.
    """

    def __call__(self, layer: int, qkv: Tensor) -> Tensor: ...


class Operators(Protocol):
    """What a device computes between attentions, on n packed tokens."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [n, in] with weight [out, in] and bias [out]: [n, out]."""
        ...

    def add_norm(
        self, residual: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """(residual + delta, its RMSNorm times weight), [n, hidden] each."""
        ...

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of [n, 2 * I] (gate | up): [n, I]."""
        ...


class Qwen2:
    """The decoder of one rank. config: that rank's share (`of_rank`).

    reduce: applied to each layer's two partial sums (attention output, MLP output) before they
    join the residual: the identity on one rank, an all-reduce on several.
    """

    def __init__(
        self,
        config: DecoderSpec,
        weights: Weights,
        operators: Operators,
        *,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.operators = operators
        self.device = weights.embedding.device
        self._reduce = reduce or (lambda x: x)

    def embed(self, ids: Tensor, table: Tensor | None = None) -> Tensor:
        """Embeddings [n, hidden] of int64 ids [n]; ids >= vocab are rows of `table` [V, hidden],
        which may lie on another device."""
        if table is None or len(table) == 0:  # text alone
            return self.weights.embedding[ids]
        text = self.weights.embedding[ids.clamp(max=self.config.vocab - 1)]
        rows = (ids - self.config.vocab).clamp(min=0)
        visual = table.to(self.device)[rows].to(text.dtype)
        return torch.where((ids >= self.config.vocab)[:, None], visual, text)

    def forward(self, hidden: Tensor, attention: Attention) -> tuple[Tensor, Tensor]:
        """All layers over embeddings [n, hidden]: (residual, what the last layer adds to it)."""
        config, operators = self.config, self.operators
        residual, delta = hidden, None
        for i, layer in enumerate(self.weights.layers):
            residual, normed = self.add_norm(residual, delta, layer.input_norm)
            qkv = operators.linear(normed, layer.qkv, layer.qkv_bias)
            qkv = qkv.view(len(hidden), config.heads + 2 * config.kv_heads, config.head_dim)
            delta = self._reduce(operators.linear(attention(i, qkv), layer.dense))
            residual, normed = self.add_norm(residual, delta, layer.post_norm)
            inner = operators.swiglu(operators.linear(normed, layer.gate_up))
            delta = self._reduce(operators.linear(inner, layer.down))
        assert delta is not None
        return residual, delta

    def add_norm(
        self, residual: Tensor, delta: Tensor | None, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.operators.add_norm(residual, delta, weight, self.config.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [n, vocab] of hidden states [n, hidden]."""
        weight, epsilon = self.weights.final_norm, self.config.rms_norm_eps
        return self.head(rms_norm(hidden, (hidden.shape[-1],), weight, epsilon))

    def head(self, normed: Tensor) -> Tensor:
        """fp32 [n, vocab] of hidden states after the last norm."""
        return self.operators.linear(normed, self.weights.lm_head).float()
