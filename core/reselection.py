"""Dynamic pruning in decoding: scores, gate, selection, compaction. Tensors in, tensors out.

Every function works on a batch of S sequences at once and never reads a value back to the host, so
the same semantics can run inside a CUDA graph. Positions are logical: token t of a sequence lies in
logical block t // B, slot t % B. T = M * B is the padded length, M the width of the block table.
Nothing at a position >= length, and nothing outside `visual`, ever influences a result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .config import BlockReduce
from .counts import blocks_kept, tokens_kept
from .decisions import Decision, GateMode


class Gate(NamedTuple):
    decision: Tensor  # int32 [S], of `Decision`: FULL, REUSE or RESELECT
    similarity: Tensor  # fp32 [S]: cosine with the previous step's scores, 0 in the first step


def token_keep_table(p: float, max_tokens: int) -> Tensor:
    """int32 [max_tokens + 1]: entry V is `tokens_kept(V, p)`. Device code sees counts, never p."""
    return torch.tensor([tokens_kept(v, p) for v in range(max_tokens + 1)], dtype=torch.int32)


def block_keep_table(p: float, max_blocks: int) -> Tensor:
    """int32 [max_blocks + 1]: entry n is `blocks_kept(n, p)`."""
    return torch.tensor([blocks_kept(n, p) for n in range(max_blocks + 1)], dtype=torch.int32)


def visual_scores(
    query: Tensor,
    new_key: Tensor,
    keys: Tensor,
    lengths: Tensor,
    visual: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attention of the fed token on the visual tokens: softmax over the whole context, head mean.

    query: [S, Hq, D] and new_key: [S, Hkv, D], of the fed token, after bias and RoPE.
    keys: [S, T, Hkv, D], the cached keys in logical order, after RoPE; position length-1 (the fed
        token) and everything behind it are not read, so they may hold anything.
    lengths: int [S], tokens in context including the fed one. visual: bool [S, T].
    scale: factor on the logits, default D ** -0.5.
    Returns fp32 [S, T], 0 outside `visual`. Follows the released code's modeling_qwen2.py (scores
    are probabilities of the full softmax, not renormalised over the visual tokens).
    """
    sequences, query_heads, head_dim = query.shape
    kv_heads = new_key.shape[1]
    grouped = query.float().view(sequences, kv_heads, query_heads // kv_heads, head_dim)
    grouped = grouped * (head_dim**-0.5 if scale is None else scale)
    position = torch.arange(keys.shape[1], device=keys.device)
    cached = position < (lengths[:, None] - 1)  # [S, T]

    logits = torch.einsum("shgd,sthd->shgt", grouped, keys.float())
    logits = logits.masked_fill(~cached[:, None, None, :], -torch.inf)
    new_logit = torch.einsum("shgd,shd->shg", grouped, new_key.float()).unsqueeze(-1)
    probabilities = torch.cat([logits, new_logit], dim=-1).softmax(-1)[..., :-1]
    return probabilities.mean(dim=(1, 2)).masked_fill(~(visual & cached), 0.0)


def gate(
    scores: Tensor, previous: Tensor, first_step: Tensor, mode: GateMode, threshold: float
) -> Gate:
    """Decides per sequence whether this decode step selects anew.

    scores, previous: fp32 [S, T], this step's and the preceding step's (not the one of the last
        selection), both 0 outside the visual tokens. first_step: bool [S], no predecessor exists.
    In the first step, and when the cosine is below `threshold` (or not a number): RESELECT.
    Otherwise as `mode` says; ONCE reuses whatever the cosine says, except in the first step.
    """
    previous = previous.masked_fill(first_step[:, None], 0.0)
    norms = scores.norm(dim=-1) * previous.norm(dim=-1)
    cosine = torch.where(norms > 0, (scores * previous).sum(-1) / norms, 0.0)
    stable = cosine >= threshold
    if mode == GateMode.ALWAYS:
        stable = torch.zeros_like(stable)
    elif mode == GateMode.ONCE:
        stable = torch.ones_like(stable)
    stable = stable & ~first_step
    kept = Decision.FULL if mode == GateMode.FULL else Decision.REUSE
    decision = torch.where(stable, kept, Decision.RESELECT)
    return Gate(decision.to(torch.int32), cosine)


def attended(decision: Tensor, selected: Tensor, previous: Tensor) -> Tensor:
    """What a step attends to, given its decision: bool [S, X] over tokens or blocks.

    selected: bool [S, X], the selection of this step; previous: bool [S, X], the last selection.
    """
    choice = decision[:, None]
    reuse = torch.where(choice == Decision.REUSE, previous, torch.ones_like(previous))
    return torch.where(choice == Decision.RESELECT, selected, reuse)


def select_tokens(scores: Tensor, visual: Tensor, keep_table: Tensor) -> Tensor:
    """The best visual tokens, bool [S, T]; tokens that are not visual are False.

    keep_table: `token_keep_table(p, >= T)` on the device of `scores`. Ties go to the lowest index.
    """
    return best_tokens(scores, visual, keep_table[visual.sum(1)])


def best_tokens(scores: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """The counts[s] best of each row's candidates, bool [S, T]; ties go to the lowest index."""
    order = scores.masked_fill(~candidates, -torch.inf).sort(dim=1, descending=True, stable=True)
    rank = torch.arange(scores.shape[1], device=scores.device).expand_as(order.indices)
    chosen = torch.zeros_like(candidates).scatter(1, order.indices, rank < counts[:, None])
    return chosen & candidates


def prunable_blocks(visual: Tensor, lengths: Tensor, tokens_per_block: int) -> Tensor:
    """bool [S, M]: blocks made of visual tokens only. The tail block never is."""
    block = torch.arange(visual.shape[1] // tokens_per_block, device=visual.device)
    before_tail = block < ((lengths[:, None] - 1) // tokens_per_block)
    return visual.view(len(visual), -1, tokens_per_block).all(-1) & before_tail


def select_blocks(
    scores: Tensor, prunable: Tensor, keep_table: Tensor, reduce: BlockReduce = "sum"
) -> Tensor:
    """Blocks to attend to, bool [S, M]: all that are not prunable, and the best of the others.

    scores: fp32 [S, M*B] token scores; prunable: bool [S, M] from `prunable_blocks`.
    keep_table: `block_keep_table(p, >= M)` on the device of `scores`. Ties go to the lowest index.
    """
    by_block = scores.view(*prunable.shape, -1)
    block_scores = by_block.sum(-1) if reduce == "sum" else by_block.amax(-1)
    return ~prunable | best_tokens(block_scores, prunable, keep_table[prunable.sum(1)])


def compact_block_table(
    table: Tensor, lengths: Tensor, keep: Tensor, tokens_per_block: int
) -> tuple[Tensor, Tensor]:
    """Drops blocks from a block table: (table', length' = length - B * dropped).

    table: int [S, M], or [S, 2, M] with TensorRT-LLM's K and V planes; any encoding, entries are
        only moved. lengths: int [S]. keep: bool [S, M]; the tail block must be kept.
    table' holds the kept blocks in logical order, then the dropped ones, then the padding as it
    was: a permutation of each row, and the identity where nothing is dropped. The token at
    length'-1 lies in the same physical slot as the one at length-1, because whole blocks went and
    the tail stays last: a K/V write through (table', length') hits the true place.
    """
    block = torch.arange(keep.shape[1], device=keep.device)
    used = block < ((lengths[:, None] + tokens_per_block - 1) // tokens_per_block)
    # Stable, so the kept blocks stay in order, and padding stays behind the dropped blocks.
    order = (~(used & keep)).sort(dim=1, stable=True).indices
    if table.dim() == 3:
        order = order[:, None, :].expand_as(table)
    shorter = lengths - tokens_per_block * (used & ~keep).sum(1, dtype=lengths.dtype)
    return table.gather(-1, order), shorter
