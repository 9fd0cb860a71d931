"""Paged attention on a CPU against the method's own, slow form."""

from __future__ import annotations

import torch
from dycoke_trt.core import attention as reference
from dycoke_trt.core import pool as kv_pool
from dycoke_trt.core.pool import PoolLayout, encode_table
from dycoke_trt.runtime.attention.cpu import (
    DecodeContext,
    gather,
    prefill_attention,
    write_chunk,
)
from hypothesis import given
from hypothesis import strategies as st


@given(
    sequences=st.integers(1, 3), kv_heads=st.integers(1, 2), group=st.integers(1, 3),
    size=st.sampled_from([1, 4, 8]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_paged_attention_equals_core(
    sequences: int, kv_heads: int, group: int, size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    width, dim, layer = 5, 8, 1
    layout = PoolLayout(sequences * width, 2, kv_heads, size, dim)
    pool = torch.randn(layout.shape)
    blocks = torch.randperm(layout.num_blocks).view(sequences, width)
    table = encode_table(blocks, 2).long()
    lengths = torch.randint(1, width * size + 1, (sequences,))
    key, value = torch.randn(2, sequences, kv_heads, dim)
    mirror = pool.clone()
    context = DecodeContext(pool, table, lengths)
    context.write(layer, key, value)
    kv_pool.write(mirror, table, layer, lengths - 1, key, value)
    assert torch.equal(pool, mirror)

    query = torch.randn(sequences, kv_heads * group, dim)
    got = context.attend(layer, query)
    expected = reference.paged_attention(query, pool, table, lengths, layer)
    torch.testing.assert_close(got, expected.flatten(1), atol=1e-5, rtol=0)

    keys, values = (gather(pool, table, layer, field, width) for field in (0, 1))
    mask = torch.rand(sequences, width * size) < 0.5
    mask[torch.arange(sequences), lengths - 1] = True
    got = DecodeContext(pool, table, lengths, mask).attend(layer, query)
    mask &= torch.arange(width * size) < lengths[:, None]
    expected = reference.masked_attention(query, keys.transpose(1, 2), values.transpose(1, 2), mask)
    torch.testing.assert_close(got, expected.flatten(1), atol=1e-5, rtol=0)


@given(past=st.integers(0, 9), count=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_a_chunk_is_written_token_by_token(past: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    layout = PoolLayout(6, 2, 2, 4, 8)
    pool, table = torch.randn(layout.shape), encode_table(torch.randperm(6)[None], 2).long()
    mirror, position = pool.clone(), torch.arange(past, past + count)
    key, value = torch.randn(2, count, 2, 8)
    write_chunk(pool, table[0], 1, position, key, value)
    for i in range(count):
        token = slice(i, i + 1)
        kv_pool.write(mirror, table, 1, position[token], key[token], value[token])
    assert torch.equal(pool, mirror)


@given(past=st.integers(0, 9), count=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_prefill_attention_is_causal(past: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    query = torch.randn(count, 6, 8)
    keys, values = torch.randn(2, 3, past + count, 8)
    got = prefill_attention(query, keys, values, past)
    for i in range(count):
        context = slice(0, past + i + 1)
        one = reference.masked_attention(
            query[i : i + 1],
            keys[:, context].transpose(0, 1)[None],
            values[:, context].transpose(0, 1)[None],
            torch.ones(1, past + i + 1, dtype=torch.bool),
        )
        torch.testing.assert_close(got[i], one.flatten(), atol=1e-5, rtol=0)
