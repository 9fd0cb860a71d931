"""Memory and order of importance: ours, not the paper's (docs/method.md). Tensors in, tensors out.

Selection ranks scores averaged over decode steps; the gate still compares the raw scores of
consecutive steps. In order of importance the selected tokens are moved to the places that pruned
steps attend to, by swaps with those that leave: whole blocks are left out, and still it is tokens
that are selected. K is cached after RoPE and a decode step attends to a set, so moving a token's K
and V changes no attention over all tokens. Batched over S sequences, no value is read back to the
host.
"""

from __future__ import annotations

import torch
from torch import Tensor


def averaged_scores(scores: Tensor, average: Tensor, first_step: Tensor, memory: float) -> Tensor:
    """a_t = memory a_(t-1) + (1 - memory) s_t, and a_1 = s_1: fp32 [S, T].

    scores: fp32 [S, T], s_t; average: fp32 [S, T], a_(t-1), not read where `first_step`, bool [S].
    Computed as s_t + memory (a_(t-1) - s_t): one weight, so all implementations round alike.
    """
    if memory == 0.0:
        return scores
    blended = scores + memory * (average - scores)
    return torch.where(first_step[:, None], scores, blended)


def swaps(selected: Tensor, attended: Tensor) -> Tensor:
    """The order in which every selected token lies at an attended place, by the fewest swaps.

    selected, attended: bool [S, T], equally many in each row. Returns int64 [S, T]: entry t is the
    position whose token moves to t. The i-th token that enters changes places with the i-th that
    leaves, both in ascending position.
    """
    entering, leaving = selected & ~attended, attended & ~selected
    position = torch.arange(selected.shape[1], device=selected.device).expand_as(selected)

    def partners(of: Tensor, among: Tensor) -> Tensor:
        listed = among.int().argsort(dim=1, descending=True, stable=True)
        return listed.gather(1, (of.cumsum(1) - 1).clamp(min=0))

    order = torch.where(entering, partners(entering, leaving), position)
    return torch.where(leaving, partners(leaving, entering), order)


def token_slots(blocks: Tensor, size: int) -> Tensor:
    """The physical slot of each logical position, int64 [S, M * size]; blocks: int [S, M]."""
    return (blocks.long()[:, :, None] * size + torch.arange(size, device=blocks.device)).flatten(1)


def reorder(per_token: Tensor, order: Tensor, slots: Tensor) -> None:
    """Moves what belongs to tokens, in place: scores, averages or marks.

    per_token: [num_slots, ...], one entry per physical token slot. order: int64 [S, T] from
    `swaps`. slots: int64 [S, T], of `token_slots`; those that stay are neither read nor written, so
    padding may name any slot.
    """
    target, source = _moves(order, slots)
    per_token[target] = per_token[source]


def reorder_pool(pool: Tensor, order: Tensor, blocks: Tensor, layers: slice) -> None:
    """Moves K and V of some layers, in place, by the same permutation in every head.

    pool: [num_blocks, L, 2, Hkv, B, D] of core/pool.py; order: int64 [S, M * B]; blocks: int
    [S, M], physical blocks; padding may name any block.
    """
    size = pool.shape[4]
    target, source = _moves(order, token_slots(blocks, size))
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
