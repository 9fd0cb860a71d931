"""The seam between scheduler and runner: what a step is asked to compute, and what comes back."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.pool import PoolLayout
from .sampling import Sampling, sample
from .selection import SelectionCounts, Trace


class Chunk(NamedTuple):
    """The next tokens of one prompt.

    ids >= the vocabulary are rows of `embeddings` [V, hidden]; past: tokens of this prompt that are
    in the pool already; blocks: all that its sequence owns, in logical order; last: the prompt ends
    with this chunk.
    """

    ids: list[int]
    past: int
    blocks: list[int]
    embeddings: Tensor | None
    last: bool


class Lane(NamedTuple):
    """One sequence of a decode step."""

    token: int  # to feed
    length: int  # tokens in context, the fed one included
    prompt_length: int
    blocks: list[int]  # all that it owns, in logical order


class StepLogits:
    """What follows each row of a step, until the next step.

    logits: fp32 [>= rows, vocab]. likeliest: of each row, -1 where its logits are not finite; given
    by devices that find it within the step, so that greedy rows need no logits on the host.
    """

    def __init__(self, logits: Tensor, likeliest: list[int] | None = None) -> None:
        self.logits = logits
        self.likeliest = likeliest

    def pick(self, row: int, sampling: Sampling, generator: torch.Generator) -> int:
        """The next token of a row. Raises FloatingPointError for logits that are no numbers."""
        if self.likeliest is None:
            return sample(self.logits[row], sampling, generator)
        if not sampling.greedy:
            return sample(self.logits[row].cpu(), sampling, generator)
        if self.likeliest[row] < 0:
            raise FloatingPointError("the logits are not finite numbers")
        return self.likeliest[row]


class Runner(Protocol):
    """Computes steps of one model over one KV pool; whose tokens and when is the scheduler's."""

    selection: SelectionCounts

    @property
    def vocab(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def layout(self) -> PoolLayout: ...

    def prefill(self, chunk: Chunk) -> StepLogits | None:
        """Feeds a chunk of a prompt; one row of logits after the last one, None before."""
        ...

    def decode(self, lanes: list[Lane], trace: Trace | None = None) -> StepLogits:
        """Feeds one token of each lane. trace: called per lane with what pruning did."""
        ...
