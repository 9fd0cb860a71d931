"""Temporal token merging on a device: similarities, then the survivors' indices, two launches.

What it computes is core/ttm.py's `ttm_select`; cosines are fp32 sums in another order, on the same
grid. Nothing is read back and shapes are fixed by the plan, so it can lie in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.errors import DyCokeError
from ..core.ttm import SIMILARITY_GRID, anchors, tokens_kept_per_frame, ttm_count
from .common import check_int32, padded

WARPS = 4
STEPS = tl.constexpr(1 / SIMILARITY_GRID)  # 2^20
# Adding and taking away 1.5 * 2^23 rounds to an integer, halves to even, as torch.round does.
ROUND = tl.constexpr(12582912.0)


@triton.jit
def similarity_kernel(
    features, frame_anchors, similarities,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (frame, token): cosine with the same token of the anchor, if the frame has one."""
    frame, token = tl.program_id(0), tl.program_id(1)
    anchor = tl.load(frame_anchors + frame)
    if anchor < 0:
        return
    mine = features + (frame * TOKENS + token).to(tl.int64) * WIDTH
    theirs = features + (anchor * TOKENS + token).to(tl.int64) * WIDTH
    dot = tl.zeros([TILE], tl.float32)
    norm_mine = tl.zeros([TILE], tl.float32)
    norm_theirs = tl.zeros([TILE], tl.float32)
    for first in tl.static_range(0, WIDTH, TILE):
        i = first + tl.arange(0, TILE)
        a = tl.load(mine + i, mask=i < WIDTH, other=0.0).to(tl.float32)
        b = tl.load(theirs + i, mask=i < WIDTH, other=0.0).to(tl.float32)
        dot += a * b
        norm_mine += a * a
        norm_theirs += b * b
    norms = tl.sqrt_rn(tl.sum(norm_mine, 0)) * tl.sqrt_rn(tl.sum(norm_theirs, 0))
    cosine = tl.where(norms > 0, tl.div_rn(tl.sum(dot, 0), tl.where(norms > 0, norms, 1.0)), 0.0)
    rounded = (cosine * STEPS + ROUND) - ROUND
    tl.store(similarities + frame * TOKENS + token, rounded)


@triton.jit
def survivors_kernel(
    similarities, frame_anchors, offsets, survivors,
    TOKENS: tl.constexpr, TOKENS_PAD: tl.constexpr, KEEP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (frame): rows of its survivors, in spatial order, from offsets[frame] on.

    Of a compared frame the KEEP least similar tokens stay, ties by the lowest index.
    """
    frame = tl.program_id(0)
    anchor = tl.load(frame_anchors + frame)
    place = survivors + tl.load(offsets + frame)
    token = tl.arange(0, TOKENS_PAD)
    inside = token < TOKENS
    line = similarities + frame * TOKENS
    compared = inside & (anchor >= 0)
    mine = tl.load(line + token, mask=compared, other=0.0)
    rank = tl.zeros([TOKENS_PAD], tl.int32)
    for first in tl.static_range(0, TOKENS_PAD, TILE):
        other = first + tl.arange(0, TILE)
        theirs = tl.load(line + other, mask=(other < TOKENS) & (anchor >= 0), other=0.0)
        ahead = (theirs[None, :] < mine[:, None]) | (
            (theirs[None, :] == mine[:, None]) & (other[None, :] < token[:, None])
        )
        rank += tl.sum((ahead & (other < TOKENS)[None, :]).to(tl.int32), 1)
    stays = inside & ((rank < KEEP) | (anchor < 0))
    slot = tl.cumsum(stays.to(tl.int32), 0) - 1
    tl.store(place + slot, (frame * TOKENS + token).to(tl.int64), mask=stays)


def similarity_constants(tokens: int, width: int) -> dict[str, int]:
    return {"TOKENS": tokens, "WIDTH": width, "TILE": min(1024, padded(width))}


def survivors_constants(tokens: int, keep: int) -> dict[str, int]:
    size = padded(tokens)
    return {"TOKENS": tokens, "TOKENS_PAD": size, "KEEP": keep, "TILE": min(32, size)}


@dataclass
class TtmPlan:
    """What is known before any feature: which frame is compared with which, and where it goes.

    anchors, offsets: int32 [F], -1 where a frame stays whole; count: survivors.
    """

    tokens: int
    keep: int
    count: int
    anchors: Tensor
    offsets: Tensor

    @classmethod
    def make(
        cls, frames: int, tokens: int, k: float, mode: str, device: torch.device | str
    ) -> TtmPlan:
        """Raises DyCokeError for a mode that bundles cannot have."""
        if mode not in ("paper", "off"):
            raise DyCokeError(f"ttm={mode!r} runs on a CPU only; on a GPU use 'paper' or 'off'")
        keep = tokens_kept_per_frame(tokens, k)
        against = [-1 if anchor is None else anchor for anchor in anchors(frames, mode)]
        sizes = [tokens if anchor < 0 else keep for anchor in against]
        offsets = [sum(sizes[:i]) for i in range(frames)]

        def ints(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        return cls(tokens, keep, ttm_count(frames, tokens, k, mode), ints(against), ints(offsets))


def select_survivors(features: Tensor, plan: TtmPlan) -> Tensor:
    """int64 [M] into the rows of `features` [F, N, D] (contiguous), as `ttm_select` gives them."""
    check_int32(anchors=plan.anchors, offsets=plan.offsets)
    frames, tokens, width = features.shape
    similarities = torch.empty(frames, tokens, device=features.device)
    survivors = torch.empty(plan.count, dtype=torch.int64, device=features.device)
    similarity_kernel[(frames, tokens)](
        features, plan.anchors, similarities, **similarity_constants(tokens, width),
        num_warps=WARPS,
    )  # fmt: skip
    survivors_kernel[(frames,)](
        similarities, plan.anchors, plan.offsets, survivors,
        **survivors_constants(tokens, plan.keep), num_warps=WARPS,
    )  # fmt: skip
    return survivors
