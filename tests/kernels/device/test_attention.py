"""Paged attention and rotary embedding against core/ and plain loops."""

from __future__ import annotations

import pytest
import torch
from dycoke_trt.core import pool as kv_pool
from dycoke_trt.core.attention import paged_attention as reference
from dycoke_trt.kernels.attention import AttentionWorkspace, paged_attention, splits_for
from dycoke_trt.kernels.rotary import rotary, rotary_table
from dycoke_trt.tests.draws import few_examples, given, st
from dycoke_trt.tests.kernels.device.batches import DEVICE, TOLERANCE, Step, steps


@few_examples
@given(step=steps(context_rows=False), splits=st.sampled_from([1, 2, 8]))
def test_paged_attention_equals_core(step: Step, splits: int) -> None:
    layout, rows = step.layout, len(step.lengths)
    layer = layout.layers - 1
    wide = step.random(rows, step.heads + 3, layout.head_dim)  # q is a part of longer rows
    query = wide[:, : step.heads]
    out = torch.full((rows, step.heads, layout.head_dim), torch.nan, device=DEVICE).to(step.dtype)
    workspace = AttentionWorkspace(rows, step.heads, layout.head_dim, splits, DEVICE)
    workspace.partial.fill_(torch.nan)
    paged_attention(
        wide, step.pool, step.table, step.lengths, out, workspace,
        heads=step.heads, layer=layer, tile=16,
    )  # fmt: skip
    used = step.lengths > 0
    expected = reference(query[used], step.pool, step.table[used], step.lengths[used], layer)
    torch.testing.assert_close(out[used].float(), expected, atol=TOLERANCE[step.dtype], rtol=0)
    assert (out[~used] == 0).all()


def test_splits_fill_the_processors() -> None:
    assert splits_for(4, 132) == 32
    assert splits_for(64, 132) == 4
    assert splits_for(256, 132) == 1
    assert splits_for(10_000, 132) == 1


@few_examples
@given(step=steps(), write=st.booleans())
def test_rotary_turns_every_token_at_its_position(step: Step, write: bool) -> None:
    layout, dim = step.layout, step.layout.head_dim
    total = step.heads + 2 * layout.kv_heads
    qkv = step.random(step.tokens, total, dim)
    out = torch.zeros_like(qkv)
    cos_sin = rotary_table(161, dim, 1e4, DEVICE)
    pool = step.pool.clone()
    layer = layout.layers - 1
    rotary(
        qkv, out, cos_sin, step.lengths, step.context_lengths,
        heads=step.heads, kv_heads=layout.kv_heads, context_rows=step.context_rows,
        pool=pool if write else None, table=step.table if write else None, layer=layer,
    )  # fmt: skip
    mirror = step.pool.clone()
    for token, (row, position) in enumerate(step.packed()):
        if position < 0:  # an unused lane
            assert (out[token] == 0).all()
            continue
        x = qkv[token].double()
        angle = position * 1e4 ** (-torch.arange(0, dim, 2, device=DEVICE).double() / dim)
        turn = torch.polar(torch.ones_like(angle), angle)
        turned = torch.complex(x[:, : dim // 2], x[:, dim // 2 :]) * turn
        expected = torch.cat([turned.real, turned.imag], dim=-1).to(step.dtype)
        keys, values = (
            slice(step.heads, step.heads + layout.kv_heads),
            slice(-layout.kv_heads, None),
        )
        tolerance = {"atol": 4 * TOLERANCE[step.dtype], "rtol": 0}
        torch.testing.assert_close(out[token, : keys.stop], expected[: keys.stop], **tolerance)
        if write:
            one = slice(row, row + 1)
            at = torch.tensor([position], device=DEVICE)
            kv_pool.write(
                mirror, step.table[one], layer, at, out[token : token + 1, keys],
                qkv[token : token + 1, values],
            )  # fmt: skip
        else:
            assert torch.equal(out[token, values], qkv[token, values])
    # What was rotated and v are in the pool, bit by bit, and nothing else was touched.
    assert torch.equal(pool.nan_to_num(9.0), mirror.nan_to_num(9.0))


def test_kernels_refuse_other_integers() -> None:
    lengths = torch.ones(1, dtype=torch.int64, device=DEVICE)
    x = torch.zeros(1, 3, 16, device=DEVICE)
    with pytest.raises(ValueError, match="lengths must be contiguous int32"):
        rotary(x, x.clone(), x, lengths, lengths.int(), heads=1, kv_heads=1)
