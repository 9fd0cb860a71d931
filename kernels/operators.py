"""What lies between attentions: products by torch, the rest by kernels/fused.py."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from .fused import add_norm, swiglu


class KernelOperators:
    """`Operators` (arch/qwen2.py) of a GPU."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias)

    def add_norm(
        self, residual: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """The sum is a new tensor: nothing is read and written by one launch."""
        normed = torch.empty_like(residual)
        total = residual if delta is None else torch.empty_like(residual)
        add_norm(residual, delta, weight, total, normed, epsilon)
        return total, normed

    def swiglu(self, gate_up: Tensor) -> Tensor:
        inner = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        swiglu(gate_up, inner)
        return inner
