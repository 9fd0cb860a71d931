"""Confidence intervals of accuracies and of their differences."""

from __future__ import annotations

from typing import NamedTuple

import torch

RESAMPLES = 4000


class Estimate(NamedTuple):
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(right: int, n: int) -> Estimate:
    """Share of right answers among n, with Wilson's interval (sound near 0 and 1)."""
    z = 1.959964
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    # At 0 and n the bound is the share itself, up to rounding.
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def bootstrap(values: list[float], seed: int = 0) -> Estimate:
    """Mean of `values` with a percentile bootstrap interval."""
    data = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(data), (RESAMPLES, len(data)), generator=generator)
    low, high = data[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Estimate(float(data.mean()), float(low), float(high))


def paired_difference(values: list[float], baseline: list[float], seed: int = 0) -> Estimate:
    """Mean of values - baseline over the same samples; the interval resamples the pairs."""
    return bootstrap([a - b for a, b in zip(values, baseline, strict=True)], seed)
