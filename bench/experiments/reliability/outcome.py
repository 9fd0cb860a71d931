"""What a test found, and how tests are listed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from .stage import Stage

Status = Literal["passed", "failed", "not run"]


@dataclass
class Outcome:
    """figures: numbers that the criterion is about; note: what a reader has to know beside them;
    needs_gpu: the part of the test that cannot run here."""

    passed: bool
    figures: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    needs_gpu: str = ""


@dataclass(frozen=True)
class Test:
    """run: given the stage and whether to be quick. bundle: it starts servers of its own."""

    number: int
    name: str
    criterion: str
    run: Callable[[Stage, bool], Outcome]
    bundle: bool = False
