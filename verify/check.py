"""One line of a verification: what was compared, how far apart it may be, how far it was."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """measured and bound: largest absolute difference, or whatever `unit` says."""

    stage: str
    passed: bool
    measured: float
    bound: float
    unit: str = "max abs difference"
