"""Decode attention over a list of tokens: the cache of a sequence that selects token by token.

The same as kernels/attention.py, but for where a tile's keys lie. A list names pool slots (block of
the pool * B + token in the block), so one entry leads to the token's K and V, each D elements that
lie together; the block table is not read, and neither is a token that is not in the list.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .attention import (
    TILE,
    WARPS,
    AttentionWorkspace,
    absorb,
    attention_constants,
    grouped_query,
    merge_parts,
    part_of,
    store_part,
)
from .common import LOWEST, check_int32, pipeline_stages


@triton.jit(do_not_specialize=["layer", "layers", "max_slots"])
def token_attention_kernel(
    query, pool, slots, lengths, out, partial, maxima, sums,
    layer, layers, max_slots, query_stride, scale,
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
    line = slots + row.to(tl.int64) * max_slots
    for first in range(begin, end, TILE):
        t = first + tl.arange(0, TILE)
        valid = t < end
        inside = valid[:, None] & (d < HEAD_DIM)[None, :]
        slot = tl.load(line + t, mask=valid, other=0)
        slab = (slot // BLOCK) * (2 * layers) + 2 * layer
        vector = (slab.to(tl.int64) * KV_HEADS + kv_head) * BLOCK + slot % BLOCK
        place = pool + vector[:, None] * HEAD_DIM + d[None, :]
        k = tl.load(place, mask=inside, other=0.0)
        # The V slab of a block and layer follows its K slab (core/pool.py).
        v = tl.load(place + KV_HEADS * BLOCK * HEAD_DIM, mask=inside, other=0.0)
        m, l, acc = absorb(q, k, v, valid, m, l, acc, scale, WIDEN)
    store_part(
        m, l, acc, out, partial, maxima, sums, row, head, group, split, q_mask, d,
        HEADS, GROUP, HEAD_DIM, SPLITS,
    )  # fmt: skip


def token_attention(
    query: Tensor,
    pool: Tensor,
    slots: Tensor,
    lengths: Tensor,
    out: Tensor,
    workspace: AttentionWorkspace,
    *,
    heads: int,
    layer: int,
    scale: float | None = None,
    tile: int = TILE,
) -> None:
    """Attention of one token of each of S sequences over the first `lengths` tokens of its list.

    query: [S, >= heads, D], rows may be longer (q | k | v); pool: [num_blocks, layers, 2, kv heads,
    B, D]; slots: int32 [S, T'], pool slots, those behind the length are not read; lengths: int32
    [S], 0 for an unused lane; out: [S, heads, D].
    """
    check_int32(slots=slots, lengths=lengths)
    _, layers, _, kv_heads, size, head_dim = pool.shape
    constants = attention_constants(
        heads, kv_heads, head_dim, size, workspace.splits, query.dtype, tile
    )
    token_attention_kernel[(len(lengths), kv_heads, workspace.splits)](
        query, pool, slots, lengths, out, workspace.partial, workspace.maxima, workspace.sums,
        layer, layers, slots.shape[1], query.stride(0),
        head_dim**-0.5 if scale is None else scale,
        **constants, num_warps=WARPS, num_stages=pipeline_stages(query.dtype),
    )  # fmt: skip
    merge_parts(workspace, out)
