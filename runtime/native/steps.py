"""Whole decode steps on a device: what the scheduler hands over and what it gets back."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from ..selection import SelectionCounts, Trace


class Lane(NamedTuple):
    """One sequence of a step."""

    token: int  # to feed
    length: int  # tokens in context, the fed one included
    prompt_length: int
    blocks: list[int]  # all that it owns, in logical order


class StepResult(NamedTuple):
    best: list[int]  # the likeliest token of each lane, -1 where its logits are not finite
    logits: Tensor  # fp32 [>= lanes, vocab], on the device; overwritten by the next step


class StepDecoder(Protocol):
    selection: SelectionCounts

    def step(self, lanes: list[Lane], trace: Trace | None = None) -> StepResult:
        """Feeds one token of each lane. trace: as for the CPU's Pruner, called per lane."""
        ...
