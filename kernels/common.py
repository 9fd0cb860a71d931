"""What kernels share: the pool's table encoding, rows of packed tokens, tile sizes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .interpreter import INTERPRETED

# Below every logit, but finite: the difference of two of them is 0, not NaN.
LOWEST = tl.constexpr(-1e38)


@triton.jit
def physical_block(entry, layers):
    """Block of a table entry (core/pool.py): bit 31 names the pool, 2 * layers slabs per block."""
    return (entry & 0x7FFFFFFF) // (2 * layers)


@triton.jit
def locate(token, lengths, context_lengths, context_rows, TILE: tl.constexpr):
    """(row, position) of a packed token: context rows come first, decode rows have one token.

    A context row holds the last context_lengths[row] of its lengths[row] tokens; a decode row feeds
    position lengths[row] - 1. Positions of rows with length 0 (unused lanes) are -1.
    """
    row = 0
    before = 0  # tokens of the rows that end before or at `token`
    total = 0  # tokens of all context rows
    for first in range(0, context_rows, TILE):
        rows = first + tl.arange(0, TILE)
        valid = rows < context_rows
        count = tl.load(context_lengths + rows, mask=valid, other=0)
        ended = valid & (total + tl.cumsum(count, 0) <= token)
        row += tl.sum(ended.to(tl.int32), 0)
        before += tl.sum(tl.where(ended, count, 0), 0)
        total += tl.sum(count, 0)
    context = row < context_rows
    row = tl.where(context, row, context_rows + token - total)
    length = tl.load(lengths + row)
    chunk = tl.load(context_lengths + row, mask=context, other=1)
    offset = tl.where(context, token - before, 0)
    return row, length - chunk + offset


def padded(value: int, least: int = 1) -> int:
    """The next power of two: the shape of a tile that holds `value` elements."""
    return max(least, 1 << (value - 1).bit_length())


def widened(dtype: torch.dtype) -> bool:
    """Whether operands of tl.dot become fp32 first.

    On a GPU 16-bit operands go to the tensor cores as they are. The interpreter computes bf16
    wrongly, so there everything is widened.
    """
    return dtype == torch.float32 or INTERPRETED


def pipeline_stages(dtype: torch.dtype) -> int:
    """num_stages of the loops that walk through the paged cache.

    A tile of K waits for its table entry, so triton counts two loads in a row: from 5 stages on
    there are two buffers per operand, and the next tile is on its way while this one is worked on.
    With 3 every tile would be waited for. In fp32 two buffers are more than sm_86 and sm_89 have.
    """
    return 3 if dtype == torch.float32 else 5


def check_int32(**tensors: Tensor) -> None:
    """Kernels read raw memory: another dtype would be garbage, not an error."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous int32, got {tensor.dtype}")
