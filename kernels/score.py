"""DyCoke scores, first of the two launches: logits of the fed token and softmax statistics.

score_t = mean_h softmax_h(q_h . k / sqrt(D))_t over the whole context, the fed token included
(docs/method.md). The cached keys of the scoring layer are read once: this launch leaves each
head's logits and, per split, the maximum and the sum of exponentials; the second one
(kernels/select.py) reads the logits, which are small, and turns them into scores on its way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import key_slots
from .common import LOWEST, check_int32, padded, pipeline_stages, widened

MOST_SPLITS = 32  # parts of a sequence in the first launch; chosen per batch size
WARPS = 4
TILE = 64  # tokens per step of the first launch
SCORES_TILE = 256


@triton.jit
def rotated(base, head, d, group_mask, cos_sin, position, HEAD_DIM: tl.constexpr):
    """Rows [heads, D] at `base`, rotated to `position` and rounded as a rotated copy would be."""
    HALF: tl.constexpr = HEAD_DIM // 2
    mask = group_mask[:, None] & (d < HEAD_DIM)[None, :]
    other = tl.where(d < HALF, d + HALF, d - HALF)  # the partner in the rotation
    angle = cos_sin + (position * HALF + d % HALF) * 2
    cos = tl.load(angle, mask=d < HEAD_DIM, other=1.0)
    sin = tl.load(angle + 1, mask=d < HEAD_DIM, other=0.0)
    sin = tl.where(d < HALF, -sin, sin)
    x = tl.load(base + head[:, None] * HEAD_DIM + d[None, :], mask=mask, other=0.0)
    y = tl.load(base + head[:, None] * HEAD_DIM + other[None, :], mask=mask, other=0.0)
    turned = x.to(tl.float32) * cos[None, :] + y.to(tl.float32) * sin[None, :]
    return turned.to(base.dtype.element_ty)


@triton.jit(do_not_specialize=["token_offset", "context_rows", "layer", "max_blocks", "splits"])
def logits_kernel(
    qkv, cos_sin, pool, table, lengths, logits, maxima, sums,
    token_offset, context_rows, layer, max_blocks, splits, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    GROUP_PAD: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr,
    ROTATE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Program (row, kv head, split). Context rows and unused lanes write nothing.

    The fed token's logit comes from its own q and k in `qkv`, never from the pool, and counts in
    the statistics of split 0. ROTATE: q and k are as projected, and rotated here.
    """
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    length = tl.load(lengths + row)
    if (row < context_rows) | (length < 1):
        return
    cached = length - 1
    share = tl.cdiv(tl.cdiv(cached, TILE), splits) * TILE
    begin = split * share
    end = tl.minimum(begin + share, cached)

    group = tl.arange(0, GROUP_PAD)
    head = kv_head * GROUP + group
    d = tl.arange(0, DIM_PAD)
    base = qkv + (token_offset + row).to(tl.int64) * ((HEADS + 2 * KV_HEADS) * HEAD_DIM)
    one = HEADS + kv_head + tl.zeros([1], tl.int32)  # the fed token's key, a tile of one head
    if ROTATE:
        q = rotated(base, head, d, group < GROUP, cos_sin, cached, HEAD_DIM)
        new_key = rotated(base, one, d, one >= 0, cos_sin, cached, HEAD_DIM)
    else:
        inside = d < HEAD_DIM
        q_mask = (group < GROUP)[:, None] & inside[None, :]
        q = tl.load(base + head[:, None] * HEAD_DIM + d[None, :], mask=q_mask, other=0.0)
        new_key = tl.load(
            base + one[:, None] * HEAD_DIM + d[None, :], mask=inside[None, :], other=0.0
        )
    own = tl.sum(q.to(tl.float32) * new_key.to(tl.float32), 1) * scale
    if WIDEN:
        q = q.to(tl.float32)
    m = tl.where(split == 0, own, LOWEST)
    l = tl.where(split == 0, 1.0, tl.zeros([GROUP_PAD], tl.float32))
    line = (row.to(tl.int64) * HEADS + head) * (max_blocks * BLOCK)
    for first in range(begin, end, TILE):
        t = first + tl.arange(0, TILE)
        valid = t < end
        slots = key_slots(
            table, row, 0, t // BLOCK, valid, max_blocks, layer, kv_head, t % BLOCK, KV_HEADS, BLOCK
        )
        k = tl.load(
            pool + slots[:, None] * HEAD_DIM + d[None, :],
            mask=valid[:, None] & (d < HEAD_DIM)[None, :], other=0.0,
        )  # fmt: skip
        if WIDEN:
            k = k.to(tl.float32)
        x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        shown = (group < GROUP)[:, None] & valid[None, :]
        tl.store(logits + line[:, None] + t[None, :], x, mask=shown)
        x = tl.where(valid[None, :], x, LOWEST)
        top = tl.maximum(m, tl.max(x, 1))
        l = l * tl.exp(m - top) + tl.sum(tl.exp(x - top[:, None]), 1)
        m = top
    here = (row * HEADS + head) * splits + split
    tl.store(maxima + here, m, mask=group < GROUP)
    tl.store(sums + here, l, mask=group < GROUP)


@triton.jit
def head_statistics(maxima, sums, row, splits, active, HEADS: tl.constexpr, HEADS_PAD: tl.constexpr,
                    SPLITS_PAD: tl.constexpr):  # fmt: skip
    """Per head the maximum m and 1 / l of the whole softmax, merged over the splits.

    Rows that are not `active` were left alone by the first launch: nothing is read.
    """
    head = tl.arange(0, HEADS_PAD)
    split = tl.arange(0, SPLITS_PAD)
    inside = (head < HEADS)[:, None] & (split < splits)[None, :] & active
    here = (row * HEADS + head)[:, None] * splits + split[None, :]
    m = tl.load(maxima + here, mask=inside, other=LOWEST)
    l = tl.load(sums + here, mask=inside, other=0.0)
    top = tl.max(m, 1)
    total = tl.sum(l * tl.exp(m - top[:, None]), 1)
    # Padded heads have no sum; their logits are LOWEST, so their probabilities are 0.
    return tl.where(head < HEADS, top, 0.0), 1.0 / tl.where(total > 0, total, 1.0)


@triton.jit
def head_sum(logits, top, inverse, row, t, valid, stride,
             HEADS: tl.constexpr, HEADS_PAD: tl.constexpr):  # fmt: skip
    """Sum over heads of the probabilities of tokens t; 0 where not `valid`."""
    head = tl.arange(0, HEADS_PAD)
    line = (row.to(tl.int64) * HEADS + head) * stride
    inside = (head < HEADS)[:, None] & valid[None, :]
    x = tl.load(logits + line[:, None] + t[None, :], mask=inside, other=LOWEST)
    return tl.sum(tl.exp(x - top[:, None]) * inverse[:, None], 0)


@triton.jit(do_not_specialize=["context_rows", "tokens", "splits"])
def scores_kernel(
    logits, maxima, sums, lengths, scores, context_rows, tokens, splits, total_heads,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (row, tile of tokens): this rank's share of the scores, for the all-reduce of TP.

    scores: fp32 [S, tokens], head sum / total_heads (of all ranks), 0 from position length-1 on, in
    context rows and in unused lanes: every element is written.
    """
    row = tl.program_id(0)
    length = tl.load(lengths + row)
    cached = tl.where(row < context_rows, 0, length - 1)
    t = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mean = tl.zeros([TILE], tl.float32)
    if cached > 0:
        top, inverse = head_statistics(
            maxima, sums, row, splits, cached > 0, HEADS, HEADS_PAD, SPLITS_PAD
        )
        mean = head_sum(logits, top, inverse, row, t, t < cached, tokens, HEADS, HEADS_PAD)
        mean = mean / total_heads
    mean = tl.where(t < cached, mean, 0.0)
    tl.store(scores + row.to(tl.int64) * tokens + t, mean, mask=t < tokens)


def logits_constants(
    heads: int, kv_heads: int, head_dim: int, tokens_per_block: int, dtype: torch.dtype,
    *, rotate: bool, tile: int = TILE,
) -> dict[str, int]:  # fmt: skip
    return {
        "HEADS": heads, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "BLOCK": tokens_per_block,
        "GROUP_PAD": padded(heads // kv_heads, 16), "DIM_PAD": padded(head_dim, 16), "TILE": tile,
        "ROTATE": rotate, "WIDEN": widened(dtype),
    }  # fmt: skip


def scores_constants(heads: int) -> dict[str, int]:
    return {
        "HEADS": heads, "HEADS_PAD": padded(heads), "SPLITS_PAD": MOST_SPLITS, "TILE": SCORES_TILE
    }  # fmt: skip


@dataclass
class ScoreWorkspace:
    """Logits and statistics of one step of up to S sequences, and what the selection works on.

    logits: fp32 [S, heads, M * B]; maxima, sums: fp32 [S, heads, splits]; blocks: fp32 [S, M],
    their scores; swaps: int32 [S, 2, M * B] of kernels/order.py; moved: int32 [S], how many.
    """

    heads: int
    splits: int
    logits: Tensor
    maxima: Tensor
    sums: Tensor
    blocks: Tensor
    swaps: Tensor
    moved: Tensor

    @classmethod
    def allocate(
        cls, sequences: int, heads: int, max_blocks: int, tokens_per_block: int, splits: int,
        device: torch.device | str,
    ) -> ScoreWorkspace:  # fmt: skip
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        tokens = max_blocks * tokens_per_block
        return cls(
            heads, splits, empty(sequences, heads, tokens),
            empty(sequences, heads, splits), empty(sequences, heads, splits),
            empty(sequences, max_blocks), empty(sequences, 2, tokens, dtype=torch.int32),
            empty(sequences, dtype=torch.int32),
        )  # fmt: skip


def score_logits(
    qkv: Tensor,
    pool: Tensor,
    table: Tensor,
    lengths: Tensor,
    workspace: ScoreWorkspace,
    *,
    layer: int,
    context_rows: int = 0,
    cos_sin: Tensor | None = None,
    scale: float | None = None,
    tile: int = TILE,
) -> None:
    """Fills the workspace for the decode rows of a step.

    qkv: [tokens, heads + 2 kv heads, D] of the packed step, decode rows last; q and k rotated, or
    as projected if `cos_sin` (kernels/rotary.py) is given. table: int32 [S, 2, M]; lengths: int32
    [S]; the pool's keys at position length-1 and behind it are not read.
    """
    check_int32(table=table, lengths=lengths)
    sequences, kv_heads, head_dim = len(lengths), pool.shape[3], pool.shape[5]
    constants = logits_constants(
        workspace.heads, kv_heads, head_dim, pool.shape[4], qkv.dtype,
        rotate=cos_sin is not None, tile=tile,
    )  # fmt: skip
    logits_kernel[(sequences, kv_heads, workspace.splits)](
        qkv, qkv if cos_sin is None else cos_sin, pool, table, lengths,
        workspace.logits, workspace.maxima, workspace.sums,
        len(qkv) - sequences, context_rows, layer, table.shape[2], workspace.splits,
        head_dim**-0.5 if scale is None else scale,
        **constants, num_warps=WARPS, num_stages=pipeline_stages(qkv.dtype),
    )  # fmt: skip


def reduce_scores(
    workspace: ScoreWorkspace,
    lengths: Tensor,
    scores: Tensor,
    *,
    context_rows: int = 0,
    total_heads: int | None = None,
) -> None:
    """Scores fp32 [S, M * B] of the tokens before the fed one, from a filled workspace."""
    check_int32(lengths=lengths)
    sequences, tokens = scores.shape
    scores_kernel[(sequences, triton.cdiv(tokens, SCORES_TILE))](
        workspace.logits, workspace.maxima, workspace.sums, lengths, scores,
        context_rows, tokens, workspace.splits, float(total_heads or workspace.heads),
        **scores_constants(workspace.heads), num_warps=WARPS,
    )  # fmt: skip
