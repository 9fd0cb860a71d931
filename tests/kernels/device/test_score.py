"""DyCoke scores against core/: softmax over the whole context, the fed token from its q and k."""

from __future__ import annotations

import torch
from dycoke_trt.core import pool as kv_pool
from dycoke_trt.core.reselection import visual_scores
from dycoke_trt.kernels.rotary import rotary, rotary_table
from dycoke_trt.kernels.score import ScoreWorkspace, reduce_scores, score_logits
from dycoke_trt.tests.draws import few_examples, given, st
from dycoke_trt.tests.kernels.device.batches import DEVICE, TOLERANCE, Step, steps
from torch import Tensor


def poison_unread(step: Step) -> Tensor:
    """The pool with NaN at the fed token: its key must come from the step, not from the cache."""
    pool, size = step.pool.clone(), step.layout.tokens_per_block
    for row, length in enumerate(step.lengths.tolist()):
        if length > 0:
            last = length - 1
            pool[step.blocks[row, last // size], :, :, :, last % size] = torch.nan
    return pool


@few_examples
@given(step=steps(), splits=st.sampled_from([1, 3, 32]), rotate=st.booleans())
def test_scores_equal_core(step: Step, splits: int, rotate: bool) -> None:
    layout, rows = step.layout, len(step.lengths)
    kv_heads, width = layout.kv_heads, step.blocks.shape[1]
    qkv = step.random(step.tokens, step.heads + 2 * kv_heads, layout.head_dim)
    turned, cos_sin = qkv, None
    if rotate:  # as the plugin is fed: before rotation
        cos_sin = rotary_table(161, layout.head_dim, 1e4, DEVICE)
        turned = torch.zeros_like(qkv)
        rotary(
            qkv, turned, cos_sin, step.lengths, step.context_lengths,
            heads=step.heads, kv_heads=kv_heads, context_rows=step.context_rows,
        )  # fmt: skip
    workspace = ScoreWorkspace.allocate(
        rows, step.heads, width, layout.tokens_per_block, splits, DEVICE
    )
    workspace.logits.fill_(torch.nan)
    score_logits(
        qkv, poison_unread(step), step.table, step.lengths, workspace,
        layer=layout.layers - 1, context_rows=step.context_rows, cos_sin=cos_sin, tile=16,
    )  # fmt: skip
    got = torch.full((rows, width * layout.tokens_per_block), torch.nan, device=DEVICE)
    reduce_scores(workspace, step.lengths, got, context_rows=step.context_rows)

    decoding = torch.arange(rows, device=DEVICE) >= step.context_rows
    decoding &= step.lengths > 0
    assert (got[~decoding] == 0).all()
    fed = turned[-rows:][decoding]
    keys = kv_pool.gather(step.pool, step.table[decoding], layout.layers - 1, kv_pool.KEY)
    expected = visual_scores(
        fed[:, : step.heads], fed[:, step.heads : step.heads + kv_heads], keys,
        step.lengths[decoding], torch.ones_like(got[decoding], dtype=torch.bool),
    )  # fmt: skip
    # With fp16 a rotation may round the other way, so logits differ by units in the last place.
    atol = TOLERANCE[step.dtype] if rotate else 1e-5
    torch.testing.assert_close(got[decoding], expected, atol=atol, rtol=0)


@few_examples
@given(step=steps(unused_lanes=False, context_rows=False))
def test_the_shares_of_ranks_add_up(step: Step) -> None:
    """Tensor parallelism: each rank scores its heads; the all-reduced sum is the head mean."""
    layout, rows = step.layout, len(step.lengths)
    width = step.blocks.shape[1]
    qkv = step.random(rows, step.heads + 2 * layout.kv_heads, layout.head_dim)

    def scores(total_heads: int) -> Tensor:
        out = torch.empty(rows, width * layout.tokens_per_block, device=DEVICE)
        workspace = ScoreWorkspace.allocate(
            rows, step.heads, width, layout.tokens_per_block, 2, DEVICE
        )
        score_logits(qkv, step.pool, step.table, step.lengths, workspace, layer=0)
        reduce_scores(workspace, step.lengths, out, total_heads=total_heads)
        return out

    alone = scores(step.heads)
    torch.testing.assert_close(2 * scores(2 * step.heads), alone, atol=1e-6, rtol=0)
