"""Qwen2 on a GPU: matrix products by torch, everything between them by kernels/.

The same pool, state and weights as runtime/native/model.py, whose forward pass is the reference.
In Triton's interpreter (TRITON_INTERPRET=1) it runs on CPU tensors, which is how it is tested
without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import linear, scaled_dot_product_attention

from ...core.errors import DyCokeError
from ...core.pool import KEY, VALUE
from ...core.pool import gather as gather_pool
from ...kernels.fused import add_norm, swiglu
from ...kernels.interpreter import INTERPRETED
from ...kernels.rotary import rotary, rotary_table
from .model import Qwen2
from .weights import LlmConfig, Weights


class Rows(NamedTuple):
    """Which sequences a packed forward pass is of: int32 on the device.

    The first `context_rows` rows are prompt chunks of context_lengths tokens, the others decode.
    """

    table: Tensor  # [S, 2, M]
    lengths: Tensor  # [S]
    context_lengths: Tensor  # [S]
    context_rows: int = 0


# (layer, v as projected [n, heads + 2 kv heads, D], q | k rotated, same shape) -> [n, heads * D]
Attend = Callable[[int, Tensor, Tensor], Tensor]


class DeviceQwen2(Qwen2):
    """The forward pass and its KV pool, with the constructor of `Qwen2`."""

    def __init__(
        self,
        config: LlmConfig,
        weights: Weights,
        num_blocks: int,
        tokens_per_block: int,
        *,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(config, weights, num_blocks, tokens_per_block, reduce=reduce)
        if self.device.type != "cuda" and not INTERPRETED:
            raise DyCokeError(
                f"the device backend cannot run on {self.device.type}; allowed: cuda, or "
                "TRITON_INTERPRET=1 for tests"
            )
        self.cos_sin = rotary_table(
            config.max_positions, config.head_dim, config.rotary_base, self.device
        )

    def embed(self, ids: Tensor, table: Tensor | None = None) -> Tensor:
        return super().embed(ids, None if table is None else table.to(self.device))

    def prefill(self, hidden: Tensor, table: Tensor, past: int) -> Tensor:
        """One chunk of one prompt, as `Qwen2.prefill`; k and v are written by the kernels."""
        count = len(hidden)
        length = torch.tensor([past + count], dtype=torch.int32, device=self.device)
        chunk = torch.tensor([count], dtype=torch.int32, device=self.device)
        rows = Rows(table[None].int().contiguous(), length, chunk, 1)

        def attend(layer: int, qkv: Tensor, rotated: Tensor) -> Tensor:
            heads, kv_heads = self.config.heads, self.config.kv_heads
            query = rotated[:, :heads].transpose(0, 1)[None]
            if past == 0:
                keys = rotated[:, heads : heads + kv_heads].transpose(0, 1)[None]
                values = qkv[:, heads + kv_heads :].transpose(0, 1)[None]
                out = scaled_dot_product_attention(
                    query, keys, values, is_causal=True, enable_gqa=True
                )
            else:
                keys, values = (
                    gather_pool(self.pool, rows.table, layer, field)[:, : past + count]
                    .transpose(1, 2)
                    .repeat_interleave(heads // kv_heads, dim=1)
                    for field in (KEY, VALUE)
                )
                mask = causal_lower_right(count, past + count)
                out = scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            return out[0].transpose(0, 1).reshape(count, -1)

        residual, delta = self.forward(hidden, rows, attend)
        return residual[-1:] + delta[-1:]

    def forward(self, hidden: Tensor, rows: Rows, attend: Attend) -> tuple[Tensor, Tensor]:
        """All layers over packed tokens: (residual, what the last layer adds), [n, hidden] each."""
        config = self.config
        residual, delta = hidden, None
        for i, layer in enumerate(self.weights.layers):
            residual, normed = self.add_norm(residual, delta, layer.input_norm)
            qkv = linear(normed, layer.qkv, layer.qkv_bias)
            qkv = qkv.view(len(hidden), config.heads + 2 * config.kv_heads, config.head_dim)
            rotated = torch.empty_like(qkv)
            rotary(
                qkv, rotated, self.cos_sin, rows.lengths, rows.context_lengths,
                heads=config.heads, kv_heads=config.kv_heads, context_rows=rows.context_rows,
                pool=self.pool, table=rows.table, layer=i,
            )  # fmt: skip
            delta = self._reduce(linear(attend(i, qkv, rotated), layer.dense))
            residual, normed = self.add_norm(residual, delta, layer.post_norm)
            gate_up = linear(normed, layer.gate_up)
            inner = gate_up.new_empty(len(hidden), gate_up.shape[1] // 2)
            swiglu(gate_up, inner)
            delta = self._reduce(linear(inner, layer.down))
        assert delta is not None
        return residual, delta

    def add_norm(
        self, residual: Tensor, delta: Tensor | None, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(residual + delta, its RMSNorm). The sum is a new tensor: nothing is read and written."""
        normed = torch.empty_like(residual)
        total = residual if delta is None else torch.empty_like(residual)
        add_norm(residual, delta, weight, total, normed, self.config.norm_epsilon)
        return total, normed
