"""Paged decode attention: one query token per sequence, split over the context, then merged.

The query heads that share a KV head are the rows of one matrix product (padded to 16, the least
that tl.dot takes), so each cached key and value is read once. Softmax runs online in fp32: every
split keeps its maximum m, its sum l of exp(x - m) and its weighted values, and
    out = sum_s exp(m_s - m) o_s / sum_s exp(m_s - m) l_s,   m = max_s m_s.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import LOWEST, check_int32, padded, pipeline_stages, widened

WARPS, MERGE_WARPS = 4, 4
TILE = 64  # tokens per step of a program


@triton.jit
def key_slots(table, row, plane, column, valid, max_blocks, layer, kv_head, slot,
              KV_HEADS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Index, in head vectors of D elements, of the pool slots of tokens (column, slot)."""
    entry = tl.load(table + (2 * row + plane) * max_blocks + column, mask=valid, other=0)
    slab = (entry & 0x7FFFFFFF).to(tl.int64) + 2 * layer
    return (slab * KV_HEADS + kv_head) * BLOCK + slot


@triton.jit
def part_of(length, split, TILE: tl.constexpr, SPLITS: tl.constexpr):
    """Tokens begin <= t < end that are a split's, in whole tiles.

    Splits share the tokens that are there, not the width of a table: it is known on the device.
    """
    share = tl.cdiv(tl.cdiv(length, TILE), SPLITS) * TILE
    begin = split * share
    return begin, tl.minimum(begin + share, length)


@triton.jit
def grouped_query(query, row, head, inside, d, query_stride,
                  HEAD_DIM: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """The query heads of one KV head, [GROUP_PAD, DIM_PAD]; 0 where not `inside`."""
    q = tl.load(
        query + row.to(tl.int64) * query_stride + head[:, None] * HEAD_DIM + d[None, :],
        mask=inside, other=0.0,
    )  # fmt: skip
    if WIDEN:
        q = q.to(tl.float32)
    return q


@triton.jit
def absorb(q, k, v, valid, m, l, acc, scale, WIDEN: tl.constexpr):
    """A tile of keys and values, [TILE, DIM_PAD], into the online softmax (m, l, acc)."""
    if WIDEN:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    x = tl.where(valid[None, :], x, LOWEST)
    top = tl.maximum(m, tl.max(x, 1))
    weights = tl.exp(x - top[:, None])
    fade = tl.exp(m - top)
    l = l * fade + tl.sum(weights, 1)
    acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return top, l, acc


@triton.jit
def store_part(
    m, l, acc, out, partial, maxima, sums, row, head, group, split, inside, d,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """A split's result for `merge_kernel`; with one split it goes straight to `out`."""
    heads = row.to(tl.int64) * HEADS + head
    if SPLITS == 1:
        # A lane without tokens (length 0) gives zeros.
        result = acc / tl.where(l > 0, l, 1.0)[:, None]
        place = out + heads[:, None] * HEAD_DIM + d[None, :]
        tl.store(place, result.to(out.dtype.element_ty), mask=inside)
    else:
        here = heads * SPLITS + split
        tl.store(partial + here[:, None] * HEAD_DIM + d[None, :], acc, mask=inside)
        tl.store(maxima + here, m, mask=group < GROUP)
        tl.store(sums + here, l, mask=group < GROUP)


@triton.jit(do_not_specialize=["layer", "max_blocks"])
def attention_kernel(
    query, pool, table, lengths, out, partial, maxima, sums,
    layer, max_blocks, query_stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    GROUP_PAD: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Program (sequence, kv head, split)."""
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    begin, end = part_of(tl.load(lengths + row), split, TILE, SPLITS)

    group = tl.arange(0, GROUP_PAD)
    head = kv_head * GROUP + group
    d = tl.arange(0, DIM_PAD)
    q_mask = (group < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    q = grouped_query(query, row, head, q_mask, d, query_stride, HEAD_DIM, WIDEN)
    m = tl.full([GROUP_PAD], LOWEST, tl.float32)
    l = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)
    for first in range(begin, end, TILE):
        t = first + tl.arange(0, TILE)
        valid = t < end
        inside = valid[:, None] & (d < HEAD_DIM)[None, :]
        slots = key_slots(
            table, row, 0, t // BLOCK, valid, max_blocks, layer, kv_head, t % BLOCK, KV_HEADS, BLOCK
        )
        k = tl.load(pool + slots[:, None] * HEAD_DIM + d[None, :], mask=inside, other=0.0)
        slots = key_slots(
            table, row, 1, t // BLOCK, valid, max_blocks, layer, kv_head, t % BLOCK, KV_HEADS, BLOCK
        )
        v = tl.load(pool + slots[:, None] * HEAD_DIM + d[None, :], mask=inside, other=0.0)
        m, l, acc = absorb(q, k, v, valid, m, l, acc, scale, WIDEN)
    store_part(
        m, l, acc, out, partial, maxima, sums, row, head, group, split, q_mask, d,
        HEADS, GROUP, HEAD_DIM, SPLITS,
    )  # fmt: skip


@triton.jit
def merge_kernel(
    partial, maxima, sums, out,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr,
):  # fmt: skip
    """Program (sequence and head): the splits' results become one."""
    head = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS_PAD)
    d = tl.arange(0, DIM_PAD)
    m = tl.load(maxima + head * SPLITS + split, mask=split < SPLITS, other=LOWEST)
    l = tl.load(sums + head * SPLITS + split, mask=split < SPLITS, other=0.0)
    top = tl.max(m, 0)
    fade = tl.exp(m - top)
    total = tl.sum(l * fade, 0)
    inside = (split < SPLITS)[:, None] & (d < HEAD_DIM)[None, :]
    place = (head * SPLITS + split)[:, None] * HEAD_DIM + d[None, :]
    acc = tl.sum(tl.load(partial + place, mask=inside, other=0.0) * fade[:, None], 0)
    result = acc / tl.where(total > 0, total, 1.0)
    tl.store(out + head * HEAD_DIM + d, result.to(out.dtype.element_ty), mask=d < HEAD_DIM)


def attention_constants(
    heads: int, kv_heads: int, head_dim: int, tokens_per_block: int, splits: int,
    dtype: torch.dtype, tile: int = TILE,
) -> dict[str, int]:  # fmt: skip
    return {
        "HEADS": heads, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "BLOCK": tokens_per_block,
        "GROUP_PAD": padded(heads // kv_heads, 16), "DIM_PAD": padded(head_dim, 16), "TILE": tile,
        "SPLITS": splits, "WIDEN": widened(dtype),
    }  # fmt: skip


def merge_constants(head_dim: int, splits: int) -> dict[str, int]:
    return {
        "HEAD_DIM": head_dim, "DIM_PAD": padded(head_dim, 16),
        "SPLITS": splits, "SPLITS_PAD": padded(splits),
    }  # fmt: skip


class AttentionWorkspace:
    """Partial results of up to `sequences` sequences in `splits` parts."""

    def __init__(
        self, sequences: int, heads: int, head_dim: int, splits: int, device: torch.device | str
    ) -> None:
        self.splits = splits
        rows = sequences * heads * splits if splits > 1 else 1
        self.partial = torch.empty(rows, head_dim, device=device)
        self.maxima = torch.empty(rows, device=device)
        self.sums = torch.empty(rows, device=device)


def splits_for(programs: int, processors: int, most: int = 32) -> int:
    """Parts per sequence so that about two programs run per multiprocessor.

    programs: sequences * kv heads, those that there are anyway.
    """
    return max(1, min(most, padded(2 * processors // max(programs, 1) + 1) // 2))


def merge_parts(workspace: AttentionWorkspace, out: Tensor) -> None:
    """The splits' results become one; with one split `out` has it. out: [S, heads, D]."""
    if workspace.splits > 1:
        merge_kernel[(out.shape[0] * out.shape[1],)](
            workspace.partial, workspace.maxima, workspace.sums, out,
            **merge_constants(out.shape[2], workspace.splits), num_warps=MERGE_WARPS,
        )  # fmt: skip


def paged_attention(
    query: Tensor,
    pool: Tensor,
    table: Tensor,
    lengths: Tensor,
    out: Tensor,
    workspace: AttentionWorkspace,
    *,
    heads: int,
    layer: int,
    scale: float | None = None,
    tile: int = TILE,
) -> None:
    """Attention of one token of each of S sequences over its first `lengths` cached tokens.

    query: [S, >= heads, D], rows may be longer (q | k | v); pool: [num_blocks, layers, 2, kv heads,
    B, D]; table: int32 [S, 2, M]; lengths: int32 [S], 0 for an unused lane; out: [S, heads, D].
    """
    check_int32(table=table, lengths=lengths)
    sequences, head_dim = len(lengths), pool.shape[5]
    kv_heads, splits = pool.shape[3], workspace.splits
    constants = attention_constants(
        heads, kv_heads, head_dim, pool.shape[4], splits, query.dtype, tile
    )
    attention_kernel[(sequences, kv_heads, splits)](
        query, pool, table, lengths, out, workspace.partial, workspace.maxima, workspace.sums,
        layer, table.shape[2], query.stride(0), head_dim**-0.5 if scale is None else scale,
        **constants, num_warps=WARPS, num_stages=pipeline_stages(query.dtype),
    )  # fmt: skip
    merge_parts(workspace, out)
