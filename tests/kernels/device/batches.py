"""Random steps for the kernels: ragged, scattered, and poisoned where nothing may be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from dycoke_trt.core.pool import PoolLayout, encode_table
from dycoke_trt.tests.draws import st
from dycoke_trt.tests.interpreter import INTERPRETED
from torch import Tensor

DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter computes bf16 wrongly where it computes in bf16 at all.
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
POISON_BLOCK = 10**8  # far outside every pool


@dataclass(repr=False)
class Step:
    """A packed step: `context_rows` chunks of prompts, then decode rows; some lanes are unused.

    blocks: int64 [S, M], physical, in random order, POISON_BLOCK behind the length. lengths,
    context_lengths: int32 [S]; a decode row's context length is its prompt's, as in TensorRT-LLM.
    """

    layout: PoolLayout
    heads: int
    dtype: torch.dtype
    blocks: Tensor
    lengths: Tensor
    context_lengths: Tensor
    context_rows: int
    pool: Tensor  # NaN where no cached token lies

    def __repr__(self) -> str:
        return (
            f"Step({self.layout}, heads={self.heads}, {self.dtype}, lengths={self.lengths.tolist()}"
            f", contexts={self.context_lengths[: self.context_rows].tolist()})"
        )

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(repr(self))  # hypothesis would print every tensor

    @property
    def table(self) -> Tensor:
        return encode_table(self.blocks, self.layout.layers).contiguous()

    @property
    def tokens(self) -> int:
        contexts = self.context_lengths[: self.context_rows]
        return int(contexts.sum()) + len(self.lengths) - self.context_rows

    def packed(self) -> list[tuple[int, int]]:
        """(row, position) of every packed token, by plain loops."""
        places = []
        for row, (length, context) in enumerate(
            zip(self.lengths.tolist(), self.context_lengths.tolist(), strict=True)
        ):
            count = context if row < self.context_rows else 1
            places += [(row, length - count + j) for j in range(count)]
        return places

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(self.dtype)


@st.composite
def steps(draw: st.DrawFn, *, unused_lanes: bool = True, context_rows: bool = True) -> Step:
    size = draw(st.sampled_from([8, 16, 32, 128]))
    width = draw(st.integers(1, max(1, 160 // size)))
    rows, kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    layout = PoolLayout(
        num_blocks=rows * width + draw(st.integers(0, 2)), layers=draw(st.integers(1, 2)),
        kv_heads=kv_heads, tokens_per_block=size,
        head_dim=draw(st.sampled_from([16, 24, 64, 128])),
    )  # fmt: skip
    group = draw(st.sampled_from([1, 2, 7]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    contexts = draw(st.integers(0, rows)) if context_rows else 0
    lengths = torch.randint(1, width * size + 1, (rows,), dtype=torch.int32)
    if unused_lanes and contexts < rows and draw(st.booleans()):
        lengths[rows - 1] = 0
    context_lengths = torch.minimum(torch.randint(1, 20, (rows,), dtype=torch.int32), lengths)
    blocks = torch.randperm(layout.num_blocks)[: rows * width].view(rows, width)
    blocks[torch.arange(width) * size >= lengths[:, None]] = POISON_BLOCK
    dtype = draw(st.sampled_from(DTYPES))
    pool = torch.full(layout.shape, torch.nan)
    for row, length in enumerate(lengths.tolist()):
        for position in range(length):
            shape = (layout.layers, 2, kv_heads, layout.head_dim)
            pool[blocks[row, position // size], :, :, :, position % size] = torch.randn(shape)
    return Step(
        layout, kv_heads * group, dtype, blocks.to(DEVICE), lengths.to(DEVICE),
        context_lengths.to(DEVICE), contexts, pool.to(DEVICE, dtype),
    )  # fmt: skip
