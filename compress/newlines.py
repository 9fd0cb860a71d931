"""Where the learned image_newline stands among a video's visual tokens.

The four layouts of LLaVA-NeXT's `mm_newline_position`, by their names there. A newline is no
feature of the video: no compressor sees, compares or drops one. Each keeps its place in reading
order, behind what survived of the row (grid), the frame, or the video that it ends; a row of which
nothing survived has its newline still. So their number follows from the number of frames alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from ..core.errors import DyCokeError

if TYPE_CHECKING:
    from torch import Tensor

Newline = Literal["one_token", "frame", "grid", "no_token"]
NEWLINES: tuple[Newline, ...] = get_args(Newline)
NEWLINE_ROW = -1  # stands for the newline among rows of tokens


def newline_count(newline: Newline, frames: int, tokens: int) -> int:
    """Newlines of `frames` frames of `tokens` tokens each.

    Raises DyCokeError for `grid` where the tokens of a frame are no square.
    """
    if newline == "grid":
        return frames * _side(tokens)
    return {"one_token": 1, "frame": frames, "no_token": 0}[newline]


def with_newlines(rows: Tensor, newline: Newline, kept: Sequence[int], tokens: int) -> Tensor:
    """int64 [B, M] -> int64 [B, V]: the surviving rows, and NEWLINE_ROW where a newline stands.

    rows: of F*N, ascending, F a multiple of len(kept). kept: tokens that stay of each frame of a
    window. tokens: N. Raises DyCokeError for `grid` where N is no square.
    """
    import torch

    end = rows.new_full((1, 1, 1), NEWLINE_ROW)
    if newline == "no_token":
        return rows
    if newline == "one_token":
        return torch.cat([rows, end[0].expand(rows.shape[0], 1)], dim=1)
    windows = rows.view(rows.shape[0], -1, sum(kept))
    end = end.expand(*windows.shape[:2], 1)
    parts, start = [], 0
    for position, count in enumerate(kept):
        frame = windows[:, :, start : start + count]
        start += count
        if newline == "frame":
            parts += [frame, end] if count else [end]
        else:
            parts.append(_end_of_rows(frame, position, len(kept), tokens))
    return torch.cat(parts, dim=2).flatten(1)


def take(features: Tensor, rows: Tensor, newline: Tensor | None) -> Tensor:
    """The rows [B, V] of [B, F, N, D], and newline [D] at every NEWLINE_ROW: [B, V, D].

    newline: None where there is none among the rows.
    """
    import torch

    videos, frames, tokens, width = features.shape
    start = torch.arange(videos, device=rows.device)[:, None] * (frames * tokens)
    at_newline = rows < 0
    inside = rows if newline is None else torch.where(at_newline, 0, rows)
    taken = features.flatten(0, 2).index_select(0, (inside + start).flatten())
    taken = taken.view(videos, rows.shape[1], width)
    return taken if newline is None else torch.where(at_newline[..., None], newline, taken)


def _end_of_rows(rows: Tensor, position: int, window: int, tokens: int) -> Tensor:
    """[B, W, n] of the frames at `position` of their windows -> [B, W, n + side].

    By a sort of places: token (y, x) stands at y * (side + 1) + x, the newline of row y at its end.
    """
    import torch

    side, count = _side(tokens), rows.shape[2]
    places = torch.arange(side * (side + 1), device=rows.device).view(side, side + 1)
    ends = places[:, -1].expand(*rows.shape[:2], side)
    token_at = torch.arange(tokens, device=rows.device).view(side, side)
    token_at = torch.cat([token_at, token_at.new_full((side, 1), NEWLINE_ROW)], dim=1).flatten()
    windows = torch.arange(rows.shape[1], device=rows.device)[:, None]
    start = (windows * window + position) * tokens  # the frame's first row
    if count == 0:
        placed = ends
    elif count == tokens:
        placed = places.flatten().expand(*rows.shape[:2], -1)
    else:
        place_of = places[:, :-1].flatten()
        taken = place_of.index_select(0, (rows - start).flatten()).view(rows.shape)
        placed = torch.cat([taken, ends], dim=2).to(torch.int32)
        placed = placed.topk(count + side, dim=-1, largest=False, sorted=True).values
    token = token_at.index_select(0, placed.flatten().to(torch.int64)).view(placed.shape)
    return torch.where(token < 0, NEWLINE_ROW, token + start)


def _side(tokens: int) -> int:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise DyCokeError(
            f"newlines after each row (grid) need a square of tokens per frame, not {tokens}"
        )
    return side
