"""Block ownership and paged attention of the native backend, each against a slow form."""

from __future__ import annotations

import pytest
import torch
from dycoke_trt.arch.operators import SLICE, few_rows
from dycoke_trt.core import attention as reference
from dycoke_trt.core import pool as kv_pool
from dycoke_trt.core.pool import PoolLayout, encode_table
from dycoke_trt.runtime.attention.cpu import (
    DecodeContext,
    gather,
    prefill_attention,
    write_chunk,
)
from dycoke_trt.runtime.blocks import BlockPool, blocks_for
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 5), max_size=8), st.randoms())
def test_blocks_belong_to_one_owner(sizes: list[int], random) -> None:
    pool = BlockPool(20)
    owned: list[list[int]] = []
    for size in sizes:
        if size > pool.free:
            with pytest.raises(ValueError, match="free"):
                pool.allocate(size)
            pool.release(owned.pop(random.randrange(len(owned))))
            continue
        owned.append(pool.allocate(size))
    flat = [block for blocks in owned for block in blocks]
    assert len(set(flat)) == len(flat)
    assert pool.free == 20 - len(flat)
    for blocks in owned:
        pool.release(blocks)
    assert sorted(pool.allocate(20)) == list(range(20))


def test_freeing_twice_is_a_bug() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.release(blocks)
    with pytest.raises(ValueError, match="free already"):
        pool.release(blocks)
    assert [blocks_for(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


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
