from fractions import Fraction

import pytest
import torch
from dycoke_trt.core import pool as kv_pool
from dycoke_trt.core.attention import masked_attention, paged_attention
from dycoke_trt.core.counts import blocks_kept, tokens_kept
from dycoke_trt.core.decisions import Decision, GateMode
from dycoke_trt.core.pool import PoolLayout, encode_table
from dycoke_trt.core.reselection import (
    attended,
    block_keep_table,
    compact_block_table,
    gate,
    prunable_blocks,
    select_blocks,
    select_tokens,
    token_keep_table,
    visual_scores,
)
from hypothesis import given
from hypothesis import strategies as st

FULL, REUSE, RESELECT, _ = Decision
POISON_BLOCK = 10**8


def test_counts() -> None:
    for hundredth in range(100):  # every step of 0.05 among them
        rate, p = Fraction(hundredth, 100), hundredth / 100
        table = block_keep_table(p, 200)
        assert table.dtype == torch.int32
        for n in range(201):
            assert blocks_kept(n, p) == n - int(rate * n)  # exact arithmetic, no rounding
            assert table[n] == blocks_kept(n, p)
            assert token_keep_table(p, n)[n] == tokens_kept(n, p) == int((1 - p) * n)


# ---- scores -------------------------------------------------------------------------------------


@given(
    sequences=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_scores_are_the_head_mean_of_the_full_softmax(
    sequences: int, kv_heads: int, group: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    padded, dim = 14, 8
    lengths = torch.randint(1, padded + 1, (sequences,))
    query = torch.randn(sequences, kv_heads * group, dim).to(dtype)
    keys = torch.randn(sequences, padded, kv_heads, dim).to(dtype)
    new_key = torch.randn(sequences, kv_heads, dim).to(dtype)
    visual = torch.rand(sequences, padded) < 0.5

    unread = torch.arange(padded) >= lengths[:, None] - 1
    poisoned = keys.masked_fill(unread[:, :, None, None], torch.nan)
    got = visual_scores(query, new_key, poisoned, lengths, visual)

    for s in range(sequences):  # slow form: head by head, in double
        context = torch.cat([keys[s, : lengths[s] - 1], new_key[s][None]]).double()
        heads = [
            (context[:, h // group] @ query[s, h].double() * dim**-0.5).softmax(0)
            for h in range(kv_heads * group)
        ]
        mean = torch.stack(heads).mean(0)
        expected = torch.zeros(padded, dtype=torch.float64)
        expected[: len(mean) - 1] = mean[:-1]  # the fed token is text
        expected[~visual[s]] = 0
        torch.testing.assert_close(got[s].double(), expected, atol=1e-6, rtol=1e-5)


# ---- gate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (GateMode.REUSE, [RESELECT, REUSE, RESELECT, RESELECT]),
        (GateMode.FULL, [RESELECT, FULL, RESELECT, RESELECT]),
        (
            GateMode.ALWAYS,
            [RESELECT, RESELECT, RESELECT, RESELECT],
        ),
        (GateMode.ONCE, [RESELECT, REUSE, REUSE, REUSE]),
    ],
)
def test_gate_modes(mode: str, expected: list[int]) -> None:
    # first step; unchanged; changed; no visual token at all
    scores = torch.tensor([[1.0, 0], [0.5, 0.5], [1, 0], [0, 0]])
    previous = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0, 1], [0, 0]])
    first = torch.tensor([True, False, False, False])
    decision, cosine = gate(scores, previous, first, mode, 0.9)
    assert decision.tolist() == expected
    torch.testing.assert_close(cosine, torch.tensor([0.0, 1, 0, 0]))


def test_gate_at_its_threshold_counts_as_unchanged() -> None:
    scores, first = torch.tensor([[3.0, 4.0]]), torch.tensor([False])
    previous = torch.tensor([[1.0, 0.0]])  # cosine 0.6
    assert gate(scores, previous, first, GateMode.REUSE, 0.6 - 1e-6).decision.item() == REUSE
    assert gate(scores, previous, first, GateMode.REUSE, 0.6 + 1e-6).decision.item() == RESELECT


def test_scores_that_are_not_numbers_reselect() -> None:
    nan, first = torch.full((1, 2), torch.nan), torch.tensor([False])
    assert gate(nan, torch.ones(1, 2), first, GateMode.REUSE, 0.9).decision.item() == RESELECT


def test_attended() -> None:
    selected = torch.tensor([[True, False, False]]).expand(3, -1)
    previous = torch.tensor([[False, True, False]]).expand(3, -1)
    now = attended(torch.tensor([FULL, REUSE, RESELECT]), selected, previous)
    assert now.int().tolist() == [[1, 1, 1], [0, 1, 0], [1, 0, 0]]


# ---- selection ----------------------------------------------------------------------------------

rates = st.sampled_from([i * 0.05 for i in range(20)])


@given(p=rates, levels=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_token_selection_equals_the_slow_form(p: float, levels: int, seed: int) -> None:
    torch.manual_seed(seed)
    scores = torch.randint(0, levels, (3, 40)) / 8  # few levels: many ties
    visual = torch.rand(3, 40) < torch.rand(3, 1)
    got = select_tokens(scores, visual, token_keep_table(p, 40))
    for s in range(3):
        places = visual[s].nonzero()[:, 0].tolist()
        ranked = sorted(places, key=lambda t: (-scores[s, t].item(), t))
        expected = sorted(ranked[: tokens_kept(len(places), p)])
        assert got[s].nonzero()[:, 0].tolist() == expected


@given(
    p=rates,
    levels=st.integers(1, 5),
    size=st.sampled_from([1, 2, 4]),
    reduce=st.sampled_from(["sum", "max"]),
    seed=st.integers(0, 2**31),
)
def test_block_selection_equals_the_slow_form(
    p: float, levels: int, size: int, reduce: str, seed: int
) -> None:
    torch.manual_seed(seed)
    blocks = 12
    lengths = torch.randint(1, blocks * size + 1, (3,))
    scores = torch.randint(0, levels, (3, blocks * size)) / 8
    begin = torch.randint(0, blocks * size, (3,))
    end = torch.randint(0, blocks * size + 1, (3,))
    position = torch.arange(blocks * size)
    visual = (position >= begin[:, None]) & (position < end[:, None])
    prunable = prunable_blocks(visual, lengths, size)
    got = select_blocks(scores, prunable, block_keep_table(p, blocks), reduce)
    for s in range(3):
        tail = (int(lengths[s]) - 1) // size
        inside = [
            b
            for b in range(blocks)
            if b < tail and all(visual[s, t] for t in range(b * size, (b + 1) * size))
        ]
        assert prunable[s].nonzero()[:, 0].tolist() == inside
        score = {b: getattr(scores[s, b * size : (b + 1) * size], reduce)().item() for b in inside}
        ranked = sorted(inside, key=lambda b: (-score[b], b))
        expected = set(range(blocks)) - set(ranked[blocks_kept(len(inside), p) :])
        assert set(got[s].nonzero()[:, 0].tolist()) == expected


# ---- compaction ---------------------------------------------------------------------------------

Batch = tuple[PoolLayout, torch.Tensor, torch.Tensor, torch.Tensor]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """A pool layout, physical tables with poisoned padding, lengths, and masks of kept blocks."""
    sequences, width = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    size = draw(st.sampled_from([1, 2, 4, 8]))
    layout = PoolLayout(
        num_blocks=sequences * width + draw(st.integers(0, 3)),
        layers=draw(st.integers(1, 3)),
        kv_heads=draw(st.integers(1, 2)),
        tokens_per_block=size,
        head_dim=draw(st.sampled_from([4, 8])),
    )
    torch.manual_seed(draw(st.integers(0, 2**31)))
    lengths = torch.randint(1, width * size + 1, (sequences,))
    blocks = torch.randperm(layout.num_blocks)[: sequences * width].view(sequences, width)
    used = torch.arange(width) * size < lengths[:, None]
    blocks = blocks.masked_fill(~used, POISON_BLOCK)
    # Any visual span, any K (through the span) and any P.
    position = torch.arange(width * size)
    begin = torch.randint(0, width * size + 1, (sequences, 1))
    end = torch.randint(0, width * size + 1, (sequences, 1))
    visual = (position >= begin) & (position < end)
    keep_table = block_keep_table(draw(rates), width)
    prunable = prunable_blocks(visual, lengths, size)
    keep = select_blocks(torch.rand(sequences, width * size), prunable, keep_table)
    return layout, blocks, lengths, keep


def check_compaction(
    batch: Batch, table: torch.Tensor, shorter: torch.Tensor, tokens_per_block: int
) -> None:
    """Attention through the compacted table equals masked attention; a write lands in its slot."""
    layout, blocks, lengths, keep = batch
    full = encode_table(blocks, layout.layers)
    generator = torch.Generator().manual_seed(int(lengths.sum()))
    pool = torch.full(layout.shape, torch.nan)
    owned = blocks[blocks != POISON_BLOCK]
    pool[owned] = torch.randn(len(owned), *layout.shape[1:], generator=generator)
    layer = layout.layers - 1
    query = torch.randn(len(blocks), layout.kv_heads * 2, layout.head_dim, generator=generator)

    # The step's own token goes through the compacted table, and must be where the full one looks.
    kv = torch.randn(2, len(blocks), layout.kv_heads, layout.head_dim, generator=generator)
    kv_pool.write(pool, table, layer, shorter - 1, kv[0], kv[1])
    rows = torch.arange(len(blocks))
    for field in (kv_pool.KEY, kv_pool.VALUE):
        logical = kv_pool.gather(pool, full, layer, field)
        assert torch.equal(logical[rows, lengths - 1], kv[field])

    kept_tokens = keep.repeat_interleave(tokens_per_block, dim=1)
    inside = torch.arange(kept_tokens.shape[1]) < lengths[:, None]
    keys = kv_pool.gather(pool, full, layer, kv_pool.KEY)
    values = kv_pool.gather(pool, full, layer, kv_pool.VALUE)
    expected = masked_attention(query, keys, values, kept_tokens & inside)
    got = paged_attention(query, pool, table, shorter, layer)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@given(batches())
def test_compacted_attention_equals_masked_attention(batch: Batch) -> None:
    layout, blocks, lengths, keep = batch
    size = layout.tokens_per_block
    table, shorter = compact_block_table(blocks, lengths, keep, size)
    assert torch.equal(table.sort().values, blocks.sort().values)  # a permutation
    assert ((lengths - shorter) % size == 0).all()
    entries, same = compact_block_table(encode_table(blocks, layout.layers), lengths, keep, size)
    assert torch.equal(same, shorter)
    assert torch.equal(entries, encode_table(table, layout.layers))
    check_compaction(batch, entries, shorter, size)


@given(batches())
def test_nothing_dropped_is_the_identity(batch: Batch) -> None:
    layout, blocks, lengths, keep = batch
    table, same = compact_block_table(
        blocks, lengths, torch.ones_like(keep), layout.tokens_per_block
    )
    assert torch.equal(table, blocks)
    assert torch.equal(same, lengths)


def fixed_batch() -> Batch:
    """Five blocks of 4, tail half full, blocks 1 and 2 dropped."""
    layout = PoolLayout(num_blocks=9, layers=2, kv_heads=1, tokens_per_block=4, head_dim=8)
    blocks = torch.tensor([[7, 2, 0, 5, 8, POISON_BLOCK]])
    keep = torch.tensor([[True, False, False, True, True, True]])
    return layout, blocks, torch.tensor([18]), keep


def test_order_of_a_compacted_table() -> None:
    _, blocks, lengths, keep = fixed_batch()
    table, shorter = compact_block_table(blocks, lengths, keep, 4)
    assert table.tolist() == [[7, 5, 8, 2, 0, POISON_BLOCK]]  # kept, dropped, padding
    assert shorter.tolist() == [10]


@pytest.mark.parametrize("fault", ["none", "length+1", "length-1", "table+1", "tail", "order"])
def test_planted_faults_are_caught(fault: str) -> None:
    batch = fixed_batch()
    layout, blocks, lengths, keep = batch
    table, shorter = compact_block_table(blocks, lengths, keep, 4)
    if fault.startswith("length"):
        shorter = shorter + int(fault.removeprefix("length"))
    elif fault == "table+1":
        table = table.roll(1, dims=1)
    elif fault == "tail":  # the tail block is not the last one
        table = table[:, [0, 2, 1, 3, 4, 5]]
    elif fault == "order":  # one kept block is replaced by a dropped one
        table = table[:, [0, 3, 2, 1, 4, 5]]
    entries = encode_table(table, layout.layers)
    if fault == "none":
        check_compaction(batch, entries, shorter, 4)
    else:
        with pytest.raises(AssertionError):
            check_compaction(batch, entries, shorter, 4)
