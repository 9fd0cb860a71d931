"""Products of few rows against torch's own."""

from __future__ import annotations

import torch
from dycoke_trt.arch.operators import SLICE, few_rows
from hypothesis import given
from hypothesis import strategies as st


@given(
    rows=st.integers(1, 20), width=st.integers(1, 40), outputs=st.integers(1, 4 * SLICE),
    whole=st.booleans(), biased=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_products_of_few_rows(
    rows: int, width: int, outputs: int, whole: bool, biased: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    if whole:
        outputs = -(-outputs // SLICE) * SLICE
    x, weight = torch.randn(rows, width), torch.randn(outputs, width)
    bias = torch.randn(outputs) if biased else None
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(few_rows(x, weight, bias), expected, atol=1e-4, rtol=0)
