"""Temporal token merging (TTM): which visual tokens of a video survive, and in which order.

"Merging" in the paper is pruning: survivors are unchanged copies. Frames are compared in windows
of four, f0..f3, token by token at the same position: f1 against f0, f3 against f2, f2 against f0.
A compared frame keeps its n_keep = int((1-k)*N) least similar tokens.

Similarities are fp32 cosines rounded to the grid 2^-20 before they are ranked, and ties go to the
lowest index: so every implementation (this one, the ONNX graph, TensorRT) ranks alike unless two
tokens differ by about one grid step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import DyCokeError

if TYPE_CHECKING:
    from torch import LongTensor, Tensor

SIMILARITY_GRID = 2.0**-20


def ttm_select(features: Tensor, k: float, mode: str = "paper", *, seed: int = 0) -> LongTensor:
    """Indices of the surviving tokens, in output order.

    features: [F, N, D], fp32 / fp16 / bf16, finite; F >= 1 frames of N >= 1 tokens.
    k: pruning rate, 0 <= k < 1.
    mode: `paper`; `reference` (the released code, including its order by ascending similarity
        inside pruned frames); `random` (as many tokens per frame as `paper`, drawn with `seed`);
        `off` (all tokens).
    Returns int64 [M] into the flattened [F*N] rows, M = `ttm_count(F, N, k, mode)`, on the device
    of `features`. Nothing is read back to the host.
    Raises DyCokeError where `reference` has no answer (F <= 4), ValueError for a wrong shape.
    Follows the paper's section 3.2; `reference` follows the released code at commit dd74634.
    """
    import torch

    if features.dim() != 3 or 0 in features.shape[:2]:
        raise ValueError(f"features must be [F, N, D] with F, N >= 1, got {list(features.shape)}")
    frames, tokens = features.shape[:2]
    n_keep = tokens_kept_per_frame(tokens, k)
    by_frame = anchors(frames, mode)
    compared = [f for f, anchor in enumerate(by_frame) if anchor is not None]
    against = [anchor for anchor in by_frame if anchor is not None]

    if mode == "random":
        generator = torch.Generator().manual_seed(seed)
        rank_by = torch.rand(len(compared), tokens, generator=generator).to(features.device)
    else:
        rank_by = similarity(features[compared], features[against])
    # A stable ascending sort is the tie rule: of equal similarities the lowest index comes first.
    kept = rank_by.sort(dim=-1, stable=True).indices[:, :n_keep]
    if mode != "reference":
        kept = kept.sort(dim=-1).values

    position = {frame: row for row, frame in enumerate(compared)}
    whole = torch.arange(tokens, device=features.device)
    parts = [
        frame * tokens + (kept[position[frame]] if frame in position else whole)
        for frame in range(len(by_frame))
    ]
    return torch.cat(parts)  # type: ignore[return-value]


def ttm_merge(features: Tensor, k: float, mode: str = "paper", *, seed: int = 0) -> Tensor:
    """The surviving rows of `features` as [M, D]; arguments and errors of `ttm_select`."""
    return features.flatten(0, 1)[ttm_select(features, k, mode, seed=seed)]


def ttm_count(frames: int, tokens_per_frame: int, k: float, mode: str = "paper") -> int:
    """M, the number of survivors, known before any feature exists: the prompt length needs it.

    paper: F//4 * (N + 3*n_keep) + (N + (r-1)*n_keep if r = F % 4 else 0).
    Raises DyCokeError exactly where `ttm_select` does.
    """
    if frames < 1 or tokens_per_frame < 1:
        raise DyCokeError(
            f"frames={frames}, tokens_per_frame={tokens_per_frame} is not allowed; "
            "allowed: integers >= 1"
        )
    n_keep = tokens_kept_per_frame(tokens_per_frame, k)
    return sum(tokens_per_frame if a is None else n_keep for a in anchors(frames, mode))


def tokens_kept_per_frame(tokens_per_frame: int, k: float) -> int:
    """n_keep = int((1-k)*N) in IEEE double, as the released code: K=0.9 keeps 1 token of 20."""
    if not 0 <= k < 1:
        raise DyCokeError(f"k={k!r} is not allowed; allowed: a number, 0 <= k < 1")
    return int((1 - k) * tokens_per_frame)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of a and b [..., D] along D in fp32, on the grid 2^-20; 0 where a vector is zero."""
    return similarity_steps(a, b) * SIMILARITY_GRID


def similarity_steps(a: Tensor, b: Tensor) -> Tensor:
    """The same in steps of the grid: whole numbers up to 2^20, as fp32."""
    import torch

    a, b = a.float(), b.float()
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    # No division by zero, even where its result is not taken: engines may trap NaN.
    cosine = torch.where(norms > 0, (a * b).sum(-1) / torch.where(norms > 0, norms, 1.0), 0.0)
    return torch.round(cosine / SIMILARITY_GRID)


def anchors(frames: int, mode: str) -> Sequence[int | None]:
    """For each output frame, the frame that it is compared with; None keeps it whole.

    The list is shorter than `frames` where the released code drops the last frame (F odd).
    """
    if mode == "off":
        return [None] * frames
    if mode in ("paper", "random"):
        back = (None, 1, 2, 1)  # f0 whole, f1 against f0, f2 against f0, f3 against f2
        return [None if (b := back[f % 4]) is None else f - b for f in range(frames)]
    if mode == "reference":
        if frames <= 4:
            raise DyCokeError(
                f"ttm='reference' cannot take {frames} frames: the released code needs at least 5; "
                "use more frames or ttm='paper'"
            )
        # Its pass over third frames ends at F-4 (exclusive): with F a multiple of 4 the last
        # window's third frame stays whole, and an odd last frame is never looked at.
        anchors: list[int | None] = []
        for f in range(frames - frames % 2):
            if f % 2:
                anchors.append(f - 1)
            else:
                anchors.append(f - 2 if f % 4 == 2 and f - 2 < frames - 4 else None)
        return anchors
    raise DyCokeError(f"ttm={mode!r} is not allowed; allowed: paper, reference, random, off")
