"""The accuracy oracle: a plain transformers Qwen2 with DyCoke's decode steps, by token or block.

Slow and obvious on purpose. The model is not patched: an attention function registered through
transformers' own AttentionInterface scores, selects and masks with core/, one sequence at a time.
The prefill runs through transformers' sdpa attention, full and causal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.attention import masked_attention
from ..core.config import DyCokeConfig
from ..core.decisions import Decision
from ..core.errors import DyCokeError
from ..core.importance import averaged_scores
from ..core.reselection import (
    attended,
    best_tokens,
    block_keep_table,
    gate,
    select_blocks,
    select_tokens,
    token_keep_table,
    visual_scores,
)

if TYPE_CHECKING:
    from transformers import Qwen2Model

ATTENTION = "dycoke_oracle"


@dataclass
class Step:
    """What one decode step did. kept: int64, visual tokens (0..V-1) attended to by layers >= l."""

    decision: int
    similarity: float
    kept: Tensor
    scores: Tensor  # fp32 [V]

    @property
    def pruned(self) -> bool:
        return len(self.kept) < len(self.scores)

    @property
    def mass_kept(self) -> float:
        """Share of the attention mass on visual tokens that fell on the kept ones."""
        return float(self.scores[self.kept].sum() / self.scores.sum())


@dataclass
class Pruner:
    """Dynamic pruning of one sequence whose visual tokens are positions begin <= t < end.

    tokens_per_block: of blocks as the engines have them, counted from position 0 of the prompt;
    None selects tokens. Nothing moves here: in order of importance tokens are selected, as many as
    the kept blocks have places. Raises DyCokeError for an order of blocks where there are none.
    """

    config: DyCokeConfig
    begin: int
    end: int
    tokens_per_block: int | None = None
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = self.end - self.begin
        self._visual = torch.ones(1, size, dtype=torch.bool)
        if self.tokens_per_block is None and self.config.order != "raster":
            raise DyCokeError(
                f"order={self.config.order!r} has no effect on tokens; allowed: 'raster', or "
                "blocks of tokens"
            )
        block = self.tokens_per_block or 1
        # The span's whole blocks; visual tokens before and behind them are always attended to.
        first = min(-self.begin % block, size)
        whole = (size - first) // block
        self._inside = slice(first, first + whole * block)
        self._keep_table = (
            token_keep_table(self.config.p, size)
            if self.tokens_per_block is None
            else block_keep_table(self.config.p, whole)
        )
        dropped = whole - int(self._keep_table[whole])
        self._places = torch.tensor([size - dropped * block])
        self._average = torch.zeros(1, size)
        self._previous = torch.zeros(1, size)
        self._selection = self._visual
        self._attended = self._visual

    def score_and_select(self, query: Tensor, keys: Tensor) -> None:
        """One step, at the scoring layer. query: [1, Hq, D]; keys: [1, T, Hkv, D], fed one last."""
        length = keys.shape[1]
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[:, self.begin : self.end] = True
        scores = visual_scores(query, keys[:, -1], keys, torch.tensor([length]), mask)
        scores = scores[:, self.begin : self.end]
        first = torch.tensor([not self.steps])
        decision, similarity = gate(
            scores, self._previous, first, self.config.gate_mode, self.config.gate_threshold
        )
        self._average = averaged_scores(scores, self._average, first, self.config.memory)
        selected = self._select()
        self._attended = attended(decision, selected, self._selection)
        if decision.item() == Decision.RESELECT:
            self._selection = selected
        self._previous = scores
        kept = self._attended[0].nonzero()[:, 0]
        self.steps.append(Step(int(decision), float(similarity), kept, scores[0]))

    def _select(self) -> Tensor:
        """The visual tokens that this step would select: bool [1, V]."""
        if self.tokens_per_block is None:
            return select_tokens(self._average, self._visual, self._keep_table)
        if self.config.order == "importance":
            return best_tokens(self._average, self._visual, self._places)
        scores = self._average[:, self._inside]
        whole = torch.ones(1, scores.shape[1] // self.tokens_per_block, dtype=torch.bool)
        blocks = select_blocks(scores, whole, self._keep_table, self.config.block_reduce)
        selected = self._visual.clone()
        selected[:, self._inside] = blocks.repeat_interleave(self.tokens_per_block, dim=1)
        return selected

    def mask(self, length: int) -> Tensor:
        """Which of `length` tokens layers >= l attend to in this step: bool [1, length]."""
        mask = torch.ones(1, length, dtype=torch.bool)
        mask[:, self.begin : self.end] = self._attended
        return mask


@dataclass(frozen=True)
class Generation:
    """tokens: generated ids, the end token included; logits: fp32 [steps, vocab] if asked for."""

    tokens: list[int]
    steps: list[Step]
    logits: Tensor | None


@torch.no_grad()
def generate(
    decoder: Qwen2Model,
    lm_head: torch.nn.Module,
    inputs_embeds: Tensor,
    span: tuple[int, int],
    config: DyCokeConfig,
    *,
    max_new_tokens: int,
    end_ids: frozenset[int] = frozenset(),
    keep_logits: bool = False,
    tokens_per_block: int | None = None,
) -> Generation:
    """Greedy generation with dynamic pruning.

    decoder: a transformers Qwen2Model; lm_head: its output projection.
    inputs_embeds: fp32 [T, hidden], the prompt after TTM. span: visual tokens, begin <= t < end.
    tokens_per_block: selects blocks of this size; None selects tokens.
    Raises DyCokeError if `config.l` leaves no layer to prune.
    """
    from transformers import DynamicCache

    config.check_layers(len(decoder.layers))
    register(decoder)
    pruner = Pruner(config, *span, tokens_per_block) if config.p > 0 else None
    cache = DynamicCache()
    hidden = decoder(inputs_embeds=inputs_embeds[None], past_key_values=cache, use_cache=True)
    logits = lm_head(hidden.last_hidden_state[:, -1:]).float()
    tokens: list[int] = []
    kept_logits = []
    while True:
        tokens.append(int(logits[0, -1].argmax()))
        if tokens[-1] in end_ids or len(tokens) == max_new_tokens:
            break
        hidden = decoder(
            input_ids=torch.tensor([tokens[-1:]]),
            past_key_values=cache,
            use_cache=True,
            dycoke=(config, pruner),
        )
        logits = lm_head(hidden.last_hidden_state).float()
        if keep_logits:
            kept_logits.append(logits[0, -1])
    steps = pruner.steps if pruner else []
    return Generation(tokens, steps, torch.stack(kept_logits) if kept_logits else None)


def register(decoder: Qwen2Model) -> None:
    """Makes `decoder` attend through `_attention`; its sdpa masks stay as they are."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    if decoder.config.model_type != "qwen2":
        raise DyCokeError(
            f"the oracle runs Qwen2 decoders, got {decoder.config.model_type!r}: "
            "give a LLaVA-OneVision checkpoint"
        )
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    decoder.config._attn_implementation = ATTENTION


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dycoke: tuple[DyCokeConfig, Pruner | None] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, Hq, q, D], key and value [1, Hkv, T, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    config, pruner = dycoke or (None, None)
    if config is None or pruner is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    fed, keys, values = query[:, :, 0], key.transpose(1, 2), value.transpose(1, 2)
    if layer == config.scoring_layer:
        pruner.score_and_select(fed, keys)
    length = keys.shape[1]
    everything = torch.ones(1, length, dtype=torch.bool)
    mask = pruner.mask(length) if layer >= config.l else everything
    return masked_attention(fed, keys, values, mask)[:, None], None


def gate_hits(steps: list[Step], threshold: float) -> int:
    """Steps whose scores resembled the preceding step's."""
    return sum(step.similarity >= threshold for step in steps[1:])


def steps_attending_everything(steps: list[Step]) -> int:
    return sum(step.decision == Decision.FULL for step in steps)


def tokens_that_entered(steps: list[Step]) -> int:
    """Visual tokens that a pruned step attended to and the pruned step before it did not."""
    return sum(
        int((~torch.isin(now.kept, before.kept)).sum())
        for before, now in pairwise(steps)
        if before.pruned and now.pruned
    )
