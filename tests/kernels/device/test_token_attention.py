"""Attention over lists of tokens against core/ on the keys and values that the lists name."""

from __future__ import annotations

import torch
from dycoke_trt.core.attention import masked_attention
from dycoke_trt.core.pool import KEY, VALUE
from dycoke_trt.kernels.attention import AttentionWorkspace, paged_attention
from dycoke_trt.kernels.token_attention import token_attention
from dycoke_trt.tests.draws import few_examples, given, st
from dycoke_trt.tests.kernels.device.batches import DEVICE, TOLERANCE, Step, steps
from torch import Tensor

POISON_SLOT = 2**31 - 1  # far outside every pool


def slots_of(step: Step) -> Tensor:
    """Pool slots of all positions, int64 [S, M * B]; poison behind the length."""
    size = step.layout.tokens_per_block
    position = torch.arange(step.blocks.shape[1] * size, device=DEVICE)
    slots = step.blocks[:, position // size] * size + position % size
    return slots.masked_fill(position >= step.lengths[:, None], POISON_SLOT)


def attend(step: Step, query: Tensor, slots: Tensor, lengths: Tensor, splits: int) -> Tensor:
    layout, rows = step.layout, len(lengths)
    out = torch.full((rows, step.heads, layout.head_dim), torch.nan, device=DEVICE).to(step.dtype)
    workspace = AttentionWorkspace(rows, step.heads, layout.head_dim, splits, DEVICE)
    workspace.partial.fill_(torch.nan)
    token_attention(
        query, step.pool, slots.int(), lengths, out, workspace,
        heads=step.heads, layer=layout.layers - 1, tile=16,
    )  # fmt: skip
    return out


@few_examples
@given(
    step=steps(context_rows=False), splits=st.sampled_from([1, 2, 8]),
    share=st.sampled_from([0.05, 0.3, 0.9]),
)  # fmt: skip
def test_a_list_of_tokens_equals_core(step: Step, splits: int, share: float) -> None:
    """Any tokens in any order, and not one that is left out, whose K and V are not numbers."""
    layout, rows = step.layout, len(step.lengths)
    size, layer = layout.tokens_per_block, layout.layers - 1
    chosen = torch.rand(rows, step.blocks.shape[1] * size, device=DEVICE) < share
    slots = torch.full(chosen.shape, POISON_SLOT, device=DEVICE)
    counts = torch.zeros_like(step.lengths)
    left_out = torch.ones(layout.num_blocks * size, dtype=torch.bool, device=DEVICE)
    for row, own in enumerate(slots_of(step)):
        listed = own[chosen[row] & (own != POISON_SLOT)]
        listed = listed[torch.randperm(len(listed)).to(DEVICE)]
        slots[row, : len(listed)], counts[row] = listed, len(listed)
        left_out[listed] = False
    by_token = step.pool[:, layer].transpose(2, 3)  # a view [num_blocks, 2, B, kv heads, D]
    by_token[left_out.view(-1, size)[:, None].expand(-1, 2, -1)] = torch.nan

    wide = step.random(rows, step.heads + 3, layout.head_dim)  # q is a part of longer rows
    out = attend(step, wide, slots, counts, splits)
    used = counts > 0
    listed = torch.arange(slots.shape[1], device=DEVICE) < counts[:, None]
    place = slots.masked_fill(~listed, 0)
    keys, values = (by_token[place // size, field, place % size] for field in (KEY, VALUE))
    expected = masked_attention(
        wide[used, : step.heads], keys[used], values[used], listed[used]
    )  # fmt: skip
    torch.testing.assert_close(out[used].float(), expected, atol=TOLERANCE[step.dtype], rtol=0)
    assert (out[~used] == 0).all()


@few_examples
@given(step=steps(context_rows=False), splits=st.sampled_from([1, 8]))
def test_all_tokens_in_order_are_the_block_table(step: Step, splits: int) -> None:
    """The same arithmetic in the same order: bit for bit what the block kernel gives."""
    layout, rows = step.layout, len(step.lengths)
    query = step.random(rows, step.heads, layout.head_dim)
    out = attend(step, query, slots_of(step), step.lengths, splits)
    expected = torch.empty_like(out)
    paged_attention(
        query, step.pool, step.table, step.lengths, expected,
        AttentionWorkspace(rows, step.heads, layout.head_dim, splits, DEVICE),
        heads=step.heads, layer=layout.layers - 1, tile=16,
    )  # fmt: skip
    assert torch.equal(out, expected)
