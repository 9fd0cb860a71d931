"""What dynamic pruning did: of one step of one sequence, and counted over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from ..core.decisions import Decision

if TYPE_CHECKING:
    from torch import Tensor


class StepTrace(NamedTuple):
    """What one decode step of one sequence did, for figures and debugging.

    scores: fp32 [V], of the visual tokens as they lie behind this step. kept: int64, those attended
    to by layers >= l, counted from the first. order: int64 [V], the place whose token moved to each
    place in this step; None in raster order.
    """

    decision: Decision
    similarity: float
    scores: Tensor
    kept: Tensor
    order: Tensor | None = None


def in_raster_order(steps: Iterable[StepTrace]) -> Iterator[StepTrace]:
    """Steps of one sequence, from its first, with tokens counted as they came."""
    holds: Tensor | None = None
    for step in steps:
        if step.order is not None:
            holds = step.order if holds is None else holds[step.order]
        if holds is None:
            yield step
        else:
            scores = step.scores.new_empty(len(holds))
            scores[holds] = step.scores
            kept = holds[step.kept].sort().values
            yield StepTrace(step.decision, step.similarity, scores, kept)


Trace = Callable[[int, StepTrace], None]  # called with the row in the batch


@dataclass
class SelectionCounts:
    """What decode steps selected so far, over all sequences.

    decisions: by `Decision`; reorders: in how many of them tokens changed places; moved: how many
    tokens did; context, attended: tokens in context of layers >= l, all and those attended to;
    seconds: scoring and selecting, on a CPU (on a GPU they are part of a step that is launched as a
    whole).
    """

    decisions: list[int] = field(default_factory=lambda: [0] * len(Decision))
    reorders: int = 0
    moved: int = 0
    context: int = 0
    attended: int = 0
    seconds: float = 0.0

    def snapshot(self) -> SelectionCounts:
        """The counts of now, which later steps do not change."""
        return replace(self, decisions=[*self.decisions])

    def add(self, decision: Tensor, lengths: Tensor, attended: Tensor, begun: float) -> None:
        """One step of S sequences: int [S] each, on the CPU; begun: when it began to score."""
        for taken in decision.tolist():
            self.decisions[taken] += 1
        self.context += sum(lengths.tolist())
        self.attended += sum(attended.tolist())
        self.seconds += time.perf_counter() - begun
