"""Rotary embedding of packed q | k | v rows, and the write of k and v into the paged pool.

NeoX form, as Qwen2 has it: for i < D/2, with angle(p, i) = p * base^(-2i/D),
    x'[i] = x[i] cos - x[i + D/2] sin        x'[i + D/2] = x[i + D/2] cos + x[i] sin.
The table is TensorRT-LLM's: fp32 [positions, D/2, 2] of (cos, sin) pairs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import check_int32, locate, padded

WARPS = 1
ROWS_TILE = 64  # context rows looked at per step of the search for a token's row


@triton.jit(do_not_specialize=["context_rows", "layer", "max_blocks"])
def rotary_kernel(
    qkv, out, cos_sin, lengths, context_lengths, table, pool,
    context_rows, layer, max_blocks,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    HALF_PAD: tl.constexpr, HEAD_TILE: tl.constexpr, ROWS_TILE: tl.constexpr,
    WRITE: tl.constexpr,
):  # fmt: skip
    """Program (token, tile of heads). WRITE: k and v go to the pool too; else v is copied to `out`.

    k and v are written at the true position of the uncompacted table. It is the slot that a
    compacted table leads to as well (core/reselection.py), so one write serves all layers.
    """
    token = tl.program_id(0)
    row, position = locate(token, lengths, context_lengths, context_rows, ROWS_TILE)
    HALF: tl.constexpr = HEAD_DIM // 2
    TOTAL: tl.constexpr = HEADS + 2 * KV_HEADS
    head = tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE)
    i = tl.arange(0, HALF_PAD)
    active = position >= 0
    inside = active & (head < TOTAL)[:, None] & (i < HALF)[None, :]

    angle = cos_sin + (position * HALF + i) * 2
    cos = tl.load(angle, mask=active & (i < HALF), other=1.0)[None, :]
    sin = tl.load(angle + 1, mask=active & (i < HALF), other=0.0)[None, :]
    place = (token.to(tl.int64) * TOTAL + head[:, None]) * HEAD_DIM + i[None, :]
    first = tl.load(qkv + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(qkv + place + HALF, mask=inside, other=0.0).to(tl.float32)
    rotates = (head < HEADS + KV_HEADS)[:, None]
    turned_first = tl.where(rotates, first * cos - second * sin, first)
    turned_second = tl.where(rotates, second * cos + first * sin, second)
    element = out.dtype.element_ty
    shown = inside
    if WRITE:
        shown = inside & rotates  # v is needed in the pool alone
    tl.store(out + place, turned_first.to(element), mask=shown)
    tl.store(out + place + HALF, turned_second.to(element), mask=shown)
    if WRITE:
        cached = active & (head >= HEADS) & (head < TOTAL)
        value = head >= HEADS + KV_HEADS
        kv_head = tl.where(value, head - HEADS - KV_HEADS, head - HEADS)
        plane = (2 * row + value.to(tl.int32)) * max_blocks
        entry = tl.load(table + plane + position // BLOCK, mask=cached, other=0)
        slab = (entry & 0x7FFFFFFF).to(tl.int64) + 2 * layer
        slot = (slab * KV_HEADS + kv_head) * BLOCK + position % BLOCK
        target = pool + slot[:, None] * HEAD_DIM + i[None, :]
        tl.store(target, turned_first.to(element), mask=inside & cached[:, None])
        tl.store(target + HALF, turned_second.to(element), mask=inside & cached[:, None])


def rotary_constants(
    heads: int, kv_heads: int, head_dim: int, tokens_per_block: int, *, write: bool
) -> dict[str, int]:
    """The kernel's constants. tokens_per_block matters with `write` alone."""
    return {
        "HEADS": heads, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "BLOCK": tokens_per_block,
        "HALF_PAD": padded(head_dim // 2), "HEAD_TILE": min(8, padded(heads + 2 * kv_heads)),
        "ROWS_TILE": ROWS_TILE, "WRITE": write,
    }  # fmt: skip


def rotary_table(positions: int, head_dim: int, base: float, device: torch.device | str) -> Tensor:
    """fp32 [positions, D/2, 2] of (cos, sin)."""
    half = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    angle = torch.arange(positions, device=device).float()[:, None] * base**-half
    return torch.stack([angle.cos(), angle.sin()], dim=-1).contiguous()


def rotary(
    qkv: Tensor,
    out: Tensor,
    cos_sin: Tensor,
    lengths: Tensor,
    context_lengths: Tensor,
    *,
    heads: int,
    kv_heads: int,
    context_rows: int = 0,
    pool: Tensor | None = None,
    table: Tensor | None = None,
    layer: int = 0,
) -> None:
    """Rotates q and k of every packed token.

    qkv, out: [tokens, heads + 2 kv heads, D], contiguous. lengths, context_lengths: int32 [S];
    the first `context_rows` rows are prompt chunks. Without a pool `out` holds q | k | v; with one,
    [num_blocks, layers, 2, kv heads, B, D] and table int32 [S, 2, M], k and v are written there and
    `out` holds q | k (its v is left alone).
    """
    check_int32(lengths=lengths, context_lengths=context_lengths)
    tokens, total, head_dim = qkv.shape
    block = 1 if pool is None else pool.shape[4]
    constants = rotary_constants(heads, kv_heads, head_dim, block, write=pool is not None)
    rotary_kernel[(tokens, triton.cdiv(total, constants["HEAD_TILE"]))](
        qkv, out, cos_sin, lengths, context_lengths,
        lengths if table is None else table, out if pool is None else pool,
        context_rows, layer, 0 if table is None else table.shape[2],
        **constants, num_warps=WARPS,
    )  # fmt: skip
