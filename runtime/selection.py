"""What dynamic pruning did: of one step of one sequence, and counted over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..core.decisions import Decision

if TYPE_CHECKING:
    from torch import Tensor


class StepTrace(NamedTuple):
    """What one decode step of one sequence did, for figures and debugging.

    kept: int64, visual tokens attended to by layers >= l, counted from the first visual token.
    """

    decision: Decision
    similarity: float
    scores: Tensor  # fp32 [V]
    kept: Tensor


Trace = Callable[[int, StepTrace], None]  # called with the row in the batch


@dataclass
class SelectionCounts:
    """What decode steps selected so far, over all sequences.

    decisions: by `Decision`; context, attended: tokens in context of
    layers >= l, all and those attended to; seconds: scoring and selecting, on a CPU (on a GPU they
    are part of a step that is launched as a whole).
    """

    decisions: list[int] = field(default_factory=lambda: [0] * len(Decision))
    context: int = 0
    attended: int = 0
    seconds: float = 0.0

    def add(self, decision: Tensor, lengths: Tensor, attended: Tensor, begun: float) -> None:
        """One step of S sequences: int [S] each, on the CPU; begun: when it began to score."""
        for taken in decision.tolist():
            self.decisions[taken] += 1
        self.context += sum(lengths.tolist())
        self.attended += sum(attended.tolist())
        self.seconds += time.perf_counter() - begun
