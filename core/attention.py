"""Decode attention, the slow and obvious form that kernels and engines are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from . import pool as kv_pool


def masked_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float | None = None
) -> Tensor:
    """Attention of one query token per sequence over the masked context, in fp32.

    query: [S, Hq, D]; keys, values: [S, T, Hkv, D]; mask: bool [S, T], at least one True per row;
    what lies outside the mask may hold anything, NaN included. Returns fp32 [S, Hq, D].
    """
    sequences, query_heads, head_dim = query.shape
    kv_heads = keys.shape[2]
    grouped = query.float().view(sequences, kv_heads, query_heads // kv_heads, head_dim)
    grouped = grouped * (head_dim**-0.5 if scale is None else scale)
    logits = torch.einsum("shgd,sthd->shgt", grouped, keys.float())
    weights = logits.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
    clean = values.float().masked_fill(~mask[:, :, None, None], 0.0)
    return torch.einsum("shgt,sthd->shgd", weights, clean).reshape(query.shape)


def paged_attention(
    query: Tensor,
    pool: Tensor,
    table: Tensor,
    lengths: Tensor,
    layer: int,
    scale: float | None = None,
) -> Tensor:
    """The same over the first `lengths` tokens that a block table [S, 2, M] leads to."""
    keys = kv_pool.gather(pool, table, layer, kv_pool.KEY)
    values = kv_pool.gather(pool, table, layer, kv_pool.VALUE)
    position = torch.arange(keys.shape[1], device=keys.device)
    return masked_attention(query, keys, values, position < lengths[:, None], scale)
