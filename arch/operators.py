"""What lies between attentions, in torch; and products of a few rows, as decoding needs them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

SLICE = 32  # rows of the weight per product: 114 to 622 KB of a Qwen2-0.5B, within a core's L2
FEW = range(4, 17)  # row counts for which slices were measured to be faster than one product


class TorchOperators:
    """`Operators` (arch/qwen2.py) of plain torch."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return few_rows(x, weight, bias)

    def add_norm(
        self, residual: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        total = residual if delta is None else residual + delta
        return total, rms_norm(total, (total.shape[-1],), weight, epsilon)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` of x [n, in] with weight [out, in] and bias [out], up to rounding: [n, out].

    From 4 rows on, a CPU's fp32 matrix product copies the whole weight into its own layout first,
    which takes longer than the product: decoding 4 sequences would cost twice what 3 do. A batch of
    products with slices of the weight reads it once, from memory into the cache of one core.
    """
    sliced = x.device.type == "cpu" and weight.dtype == torch.float32
    if not sliced or len(x) not in FEW or len(weight) % SLICE:
        return linear(x, weight, bias)
    slices = weight.view(-1, SLICE, weight.shape[1])
    out = torch.bmm(x.expand(len(slices), -1, -1), slices.mT)  # [slices, n, SLICE]
    out = out.transpose(0, 1).reshape(len(x), -1)
    return out if bias is None else out + bias
