"""Small fused steps between the matrix products: residual + RMSNorm, and SwiGLU.

Their own kernels, not torch.compile: a few lines each, no compiler toolchain or warm-up on the
machine that serves, and the same launch path, interpreter tests and CUDA graphs as the others.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import padded

WARPS = 4


@triton.jit
def add_norm_kernel(
    residual, delta, weight, total, out, epsilon,
    HIDDEN: tl.constexpr, HIDDEN_PAD: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Program (row): total = residual + delta, out = total / rms(total) * weight."""
    i = tl.arange(0, HIDDEN_PAD)
    inside = i < HIDDEN
    place = tl.program_id(0).to(tl.int64) * HIDDEN + i
    x = tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    element = out.dtype.element_ty
    if ADD:
        x += tl.load(delta + place, mask=inside, other=0.0).to(tl.float32)
        # The residual stream is kept in the model's dtype, and the norm sees what is kept.
        tl.store(total + place, x.to(element), mask=inside)
        x = x.to(element).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / HIDDEN + epsilon)
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (x * w).to(element), mask=inside)


@triton.jit
def swiglu_kernel(gate_up, out, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Program (row, tile): out = silu(gate) * up."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = i < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + i, mask=inside, other=0.0).to(tl.float32)
    value = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * WIDTH + i, value.to(out.dtype.element_ty), mask=inside)


def add_norm_constants(hidden: int, *, add: bool) -> dict[str, int]:
    return {"HIDDEN": hidden, "HIDDEN_PAD": padded(hidden), "ADD": add}


def swiglu_constants(width: int) -> dict[str, int]:
    return {"WIDTH": width, "TILE": min(1024, padded(width))}


def add_norm(
    residual: Tensor, delta: Tensor | None, weight: Tensor, total: Tensor, out: Tensor, eps: float
) -> None:
    """total = residual + delta (both [n, hidden]), out = RMSNorm(total) * weight.

    Without `delta` only the norm of `residual` is computed. `total` must not be `residual`.
    """
    rows, hidden = residual.shape
    add_norm_kernel[(rows,)](
        residual, residual if delta is None else delta, weight, total, out, eps,
        **add_norm_constants(hidden, add=delta is not None), num_warps=WARPS,
    )  # fmt: skip


def swiglu(gate_up: Tensor, out: Tensor) -> None:
    """out [n, I] = silu(gate) * up of gate_up [n, 2 I] (gate | up)."""
    rows, width = out.shape
    constants = swiglu_constants(width)
    swiglu_kernel[(rows, triton.cdiv(width, constants["TILE"]))](
        gate_up, out, **constants, num_warps=WARPS
    )
