"""Memory and order of importance: ours, not the paper's (docs/method.md). Tensors in, tensors out.

Selection ranks scores averaged over decode steps; the gate still compares the raw scores of
consecutive steps. Once per request the tokens of the prunable blocks are moved into blocks of like
importance. K is cached after RoPE and a decode step attends to a set, so moving a token's K and V
changes no attention over all tokens. Batched over S sequences, no value is read back to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

ORDER_GRID = 2**20  # importance is ranked on a grid of 2^-20, so all implementations order alike


def averaged_scores(scores: Tensor, average: Tensor, first_step: Tensor, memory: float) -> Tensor:
    """a_t = memory a_(t-1) + (1 - memory) s_t, and a_1 = s_1: fp32 [S, T].

    scores: fp32 [S, T], s_t; average: fp32 [S, T], a_(t-1), not read where `first_step`, bool [S].
    """
    if memory == 0.0:
        return scores
    blended = memory * average + (1 - memory) * scores
    return torch.where(first_step[:, None], scores, blended)


def importance_order(scores: Tensor, prunable_tokens: Tensor) -> Tensor:
    """int64 [S, T]: entry t is the position whose token moves to t; a permutation of each row.

    scores: fp32 [S, T], averaged, 0 <= score <= 1. prunable_tokens: bool [S, T], the tokens of
    whole prunable blocks. The i-th prunable position takes the i-th most important prunable token;
    every other position keeps its own. Ties go to the lowest position.
    """
    position = torch.arange(scores.shape[1], device=scores.device).expand_as(prunable_tokens)
    keys = (scores.double() * ORDER_GRID).round().long().masked_fill(~prunable_tokens, -1)
    ranked = keys.sort(dim=1, descending=True, stable=True).indices
    rank = (prunable_tokens.cumsum(1) - 1).clamp(min=0)
    return torch.where(prunable_tokens, ranked.gather(1, rank), position)


def reorder(per_token: Tensor, order: Tensor, slots: Tensor) -> None:
    """Moves what belongs to tokens, in place: scores, averages or marks.

    per_token: [num_slots, ...], one entry per physical token slot. order: int64 [S, T] from
    `importance_order`. slots: int64 [S, T], the physical slot of each logical position; those that
    stay are neither read nor written, so padding may name any slot.
    """
    target, source = _moves(order, slots)
    per_token[target] = per_token[source]


def reorder_pool(pool: Tensor, order: Tensor, blocks: Tensor, layers: slice) -> None:
    """Moves K and V of some layers, in place, by the same permutation in every head.

    pool: [num_blocks, L, 2, Hkv, B, D] of core/pool.py; order: int64 [S, M * B]; blocks: int
    [S, M], physical blocks; padding may name any block.
    """
    size = pool.shape[4]
    slots = (blocks.long()[:, :, None] * size + torch.arange(size, device=blocks.device)).flatten(1)
    target, source = _moves(order, slots)
    by_slot = pool[:, layers].movedim(4, 1)  # a view [num_blocks, B, layers, 2, Hkv, D]
    by_slot[target // size, target % size] = by_slot[source // size, source % size]


def _moves(order: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Slots to write and to read, int64 [S * T] each.

    A token that stays repeats the first move of the batch (where nothing moves, all repeat lane 0,
    which moves to itself), so that no write of padding meets a move and no count is needed.
    """
    moves = (order != torch.arange(order.shape[1], device=order.device)).flatten()
    lane = torch.arange(len(moves), device=order.device)
    lane = torch.where(moves, lane, moves.int().argmax())
    return slots.flatten()[lane], slots.gather(1, order).flatten()[lane]
