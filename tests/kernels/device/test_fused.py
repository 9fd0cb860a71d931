"""Residual + RMSNorm and SwiGLU against torch."""

from __future__ import annotations

import torch
from dycoke_trt.kernels.fused import add_norm, swiglu
from dycoke_trt.tests.draws import few_examples, given, st
from dycoke_trt.tests.kernels.device.batches import DEVICE, DTYPES, TOLERANCE
from torch.nn.functional import rms_norm, silu


@few_examples
@given(
    rows=st.integers(1, 3), hidden=st.sampled_from([16, 96, 130]), dtype=st.sampled_from(DTYPES),
    add=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_add_norm(rows: int, hidden: int, dtype: torch.dtype, add: bool, seed: int) -> None:
    torch.manual_seed(seed)
    residual, delta = torch.randn(2, rows, hidden, device=DEVICE).to(dtype)
    weight = torch.rand(hidden, device=DEVICE).to(dtype)
    total, out = torch.empty_like(residual), torch.empty_like(residual)
    add_norm(residual, delta if add else None, weight, total, out, 1e-6)
    expected = residual
    if add:
        expected = residual + delta
        assert torch.equal(total, expected)
    norm = rms_norm(expected.float(), (hidden,), weight.float(), 1e-6)
    torch.testing.assert_close(out.float(), norm, atol=2 * TOLERANCE[dtype], rtol=0)


@few_examples
@given(
    rows=st.integers(1, 3), width=st.sampled_from([16, 100, 1300]), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_swiglu(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    gate_up = (4 * torch.randn(rows, 2 * width, device=DEVICE)).to(dtype)
    out = torch.empty(rows, width, device=DEVICE, dtype=dtype)
    swiglu(gate_up, out)
    gate, up = gate_up.float().chunk(2, dim=-1)
    torch.testing.assert_close(out.float(), silu(gate) * up, atol=1e-5, rtol=TOLERANCE[dtype])
