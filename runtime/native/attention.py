"""Attention over the paged pool on a CPU: gather, then torch's fused attention.

The slow and obvious form is core/attention.py. Tables are TensorRT-LLM's, int [S, 2, M].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.pool import KEY, VALUE


def gather(pool: Tensor, table: Tensor, layer: int, field: int, blocks: int) -> Tensor:
    """K or V of the first `blocks` blocks of each sequence: [S, kv heads, blocks * B, D].

    pool: [num_blocks, layers, 2, kv heads, B, D].
    """
    _, _, _, kv_heads, size, head_dim = pool.shape
    rows = pool.view(-1, size * head_dim)  # one row per (slab, head): a single copy, in order
    slabs = table[:, None, field, :blocks] + 2 * layer
    heads = torch.arange(kv_heads, device=pool.device)[:, None]
    index = (slabs * kv_heads + heads).flatten()  # [S, kv heads, blocks]
    return rows.index_select(0, index).view(len(table), kv_heads, blocks * size, head_dim)


def decode_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """One query token per sequence. query: [S, Hq, D]; keys, values: [S, Hkv, T, D].

    mask: bool [S, T], True where a position is attended to. Returns [S, Hq * D].
    The query heads of a group share a KV head, so they stand in as the query's length.
    """
    sequences, query_heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.view(sequences, kv_heads, query_heads // kv_heads, head_dim)
    out = torch.nn.functional.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=mask[:, None, None, :]
    )
    return out.reshape(sequences, -1)


def prefill_attention(query: Tensor, keys: Tensor, values: Tensor, past: int) -> Tensor:
    """Causal attention of one chunk. query: [n, Hq, D]; keys, values: [Hkv, past + n, D].

    Returns [n, Hq * D].
    """
    count, query_heads, head_dim = query.shape
    group = query_heads // keys.shape[0]
    keys = keys.repeat_interleave(group, dim=0)[None]
    values = values.repeat_interleave(group, dim=0)[None]
    heads = query.transpose(0, 1)[None]
    if past == 0:
        mask = None
    else:
        position = torch.arange(past + count, device=query.device)
        mask = position <= position[past:, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        heads, keys, values, attn_mask=mask, is_causal=mask is None
    )
    return out[0].transpose(0, 1).reshape(count, query_heads * head_dim)


def write(pool: Tensor, table: Tensor, layer: int, position: Tensor, k: Tensor, v: Tensor) -> None:
    """Writes tokens, in place. table: [S, 2, M]; position: int64 [S]; k, v: [S, Hkv, D].

    For a chunk of one sequence, expand its table row to [n, 2, M].
    """
    slabs = pool.flatten(0, 2)
    column, slot = position // pool.shape[4], position % pool.shape[4]
    rows = torch.arange(len(position), device=position.device)
    for field, data in ((KEY, k), (VALUE, v)):
        entries = table[rows, field, column] + 2 * layer
        slabs[entries.long(), :, slot] = data
