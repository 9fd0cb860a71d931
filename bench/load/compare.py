"""Two servers under the same load, round by round: ratios with confidence intervals.

What slows the machine down slows both servers of a round, so it is each round's ratio that counts.
Ratios multiply: the mean is geometric, and Student's t gives its interval on the logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt
from statistics import fmean, stdev
from typing import NamedTuple

# 97.5 % quantiles of Student's t by degrees of freedom, from 1 on; beyond, the normal one is near.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Ratio(NamedTuple):
    """value: geometric mean over rounds; low, high: its 95 % interval, None of a single round."""

    value: float
    low: float | None
    high: float | None
    rounds: int


def compare(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Of values[i] / baseline[i], both > 0, one pair per round; at least one."""
    logs = [log(a / b) for a, b in zip(values, baseline, strict=True)]
    middle = fmean(logs)
    n = len(logs)
    if n == 1:
        return Ratio(exp(middle), None, None, n)
    quantile = _T[n - 2] if n - 1 <= len(_T) else 1.96 + 2.5 / (n - 1)
    half = quantile * stdev(logs) / sqrt(n)
    return Ratio(exp(middle), exp(middle - half), exp(middle + half), n)
