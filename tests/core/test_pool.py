import torch
from dycoke_trt.core import pool as kv_pool
from dycoke_trt.core.attention import masked_attention, paged_attention
from dycoke_trt.core.pool import KEY, VALUE, PoolLayout, decode_entries, encode_table
from hypothesis import given
from hypothesis import strategies as st

layouts = st.builds(
    PoolLayout,
    num_blocks=st.integers(1, 9),
    layers=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    tokens_per_block=st.sampled_from([1, 2, 8, 16]),
    head_dim=st.integers(1, 5),
)


def test_entries_are_those_of_the_documented_formula() -> None:
    # block * layers * 2 + field, as in kvCacheManager.cpp's flat_index3(block, layer 0, field).
    table = encode_table(torch.tensor([[3, 0, 7]]), layers=28)
    assert table.tolist() == [[[168, 0, 392], [169, 1, 393]]]
    assert table.dtype == torch.int32


def test_the_secondary_pool_flag_is_bit_31() -> None:
    entries = torch.tensor([5 - 2**31, 5], dtype=torch.int32)
    block, field, secondary = decode_entries(entries, layers=2)
    assert block.tolist() == [1, 1]
    assert field.tolist() == [1, 1]
    assert secondary.tolist() == [True, False]


@given(layouts, st.data())
def test_encode_and_decode_are_inverse(layout: PoolLayout, data: st.DataObject) -> None:
    block = data.draw(st.integers(0, layout.num_blocks - 1))
    entries = encode_table(torch.tensor([block]), layout.layers)
    decoded, field, secondary = decode_entries(entries, layout.layers)
    assert decoded.flatten().tolist() == [block, block]
    assert field.flatten().tolist() == [KEY, VALUE]
    assert not secondary.any()


@given(layouts, st.data())
def test_an_element_lies_where_the_formula_says(layout: PoolLayout, data: st.DataObject) -> None:
    pool = torch.arange(torch.Size(layout.shape).numel()).view(layout.shape)
    blocks = torch.randperm(layout.num_blocks)[None]
    table = encode_table(blocks, layout.layers)
    layer = data.draw(st.integers(0, layout.layers - 1))
    token = data.draw(st.integers(0, layout.num_blocks * layout.tokens_per_block - 1))
    head = data.draw(st.integers(0, layout.kv_heads - 1))
    dim = data.draw(st.integers(0, layout.head_dim - 1))
    for field in (KEY, VALUE):
        entry = int(table[0, field, token // layout.tokens_per_block])
        offset = layout.element_offset(entry, layer, token, head, dim)
        logical = kv_pool.gather(pool, table, layer, field)
        assert pool.flatten()[offset] == logical[0, token, head, dim]


def test_block_bytes() -> None:
    # LLaVA-OneVision-7B in bf16: 57,344 bytes per token.
    layout = PoolLayout(1, layers=28, kv_heads=4, tokens_per_block=64, head_dim=128)
    assert layout.block_bytes(2) == 57_344 * 64
    assert torch.Size(layout.shape).numel() * 2 == layout.block_bytes(2)


@given(layouts, st.integers(0, 2**31))
def test_write_then_gather(layout: PoolLayout, seed: int) -> None:
    torch.manual_seed(seed)
    pool = torch.zeros(layout.shape)
    table = encode_table(torch.randperm(layout.num_blocks)[None], layout.layers)
    tokens = layout.num_blocks * layout.tokens_per_block
    keys = torch.randn(tokens, layout.kv_heads, layout.head_dim)
    values = torch.randn(tokens, layout.kv_heads, layout.head_dim)
    layer = layout.layers - 1
    for t in torch.randperm(tokens):
        kv_pool.write(pool, table, layer, t[None], keys[t][None], values[t][None])
    assert torch.equal(kv_pool.gather(pool, table, layer, KEY)[0], keys)
    assert torch.equal(kv_pool.gather(pool, table, layer, VALUE)[0], values)
    assert not pool[:, :layer].any()  # other layers are untouched


def test_attention_equals_torch_and_ignores_what_is_masked() -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 6, 8), torch.randn(2, 20, 3, 8), torch.randn(2, 20, 3, 8)
    mask = torch.rand(2, 20) < 0.6
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, None], keys.transpose(1, 2), values.transpose(1, 2),
        attn_mask=mask[:, None, None], enable_gqa=True,
    )  # fmt: skip
    poison = ~mask[:, :, None, None]
    got = masked_attention(
        query, keys.masked_fill(poison, torch.nan), values.masked_fill(poison, torch.nan), mask
    )
    torch.testing.assert_close(got, expected[:, :, 0], atol=1e-6, rtol=1e-6)


def test_paged_attention_reads_only_the_length() -> None:
    torch.manual_seed(0)
    layout = PoolLayout(num_blocks=4, layers=2, kv_heads=1, tokens_per_block=2, head_dim=4)
    pool = torch.full(layout.shape, torch.nan)
    table = encode_table(torch.tensor([[2, 0, 10**8]]), layout.layers)  # poisoned padding
    for t in range(3):
        kv_pool.write(
            pool, table, 1, torch.tensor([t]), torch.randn(1, 1, 4), torch.full((1, 1, 4), t)
        )
    out = paged_attention(torch.zeros(1, 2, 4), pool, table, torch.tensor([3]), layer=1)
    torch.testing.assert_close(out, torch.full((1, 2, 4), 1.0))  # the mean of 0, 1, 2
