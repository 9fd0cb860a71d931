"""Sampling: what it refuses, how often it draws what, and its extremes."""

from __future__ import annotations

import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.sampling import Sampling, sample


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0), ("temperature", float("nan")),
        ("temperature", float("inf")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5),
        ("top_p", float("nan")), ("seed", -1), ("seed", 2**64),
    ],
)  # fmt: skip
def test_sampling_refuses(field: str, value: float) -> None:
    with pytest.raises(DyCokeError, match=f"{field}="):
        Sampling(**{field: value})


def test_sampling_frequencies() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0, -1.0])
    generator = Sampling(seed=2**64 - 1).generator()

    def draw(**options: float) -> set[int]:
        sampling = Sampling(**{"top_k": 0, **options})
        return {sample(logits, sampling, generator) for _ in range(400)}

    assert sample(logits, Sampling(), generator) == 1
    assert draw(temperature=0.0) == draw(temperature=0.0, top_k=3, top_p=0.5) == {1}
    assert draw(temperature=5.0) == {0, 1, 2, 3, 4}
    assert draw(top_k=2) == {1, 2}
    assert draw(temperature=0.01) == {1}
    # Masses: 0.64, 0.24, 0.09, ...: the smallest set that reaches 0.7 has two tokens.
    assert draw(top_p=0.7) == {1, 2}
    assert draw(top_p=0.6) == {1}
    counts = torch.zeros(5)
    for _ in range(3000):
        counts[sample(logits, Sampling(top_k=0), generator)] += 1
    torch.testing.assert_close(counts / 3000, logits.softmax(0), atol=0.04, rtol=0)


@pytest.mark.parametrize("temperature", [3e38, 1e308])
def test_a_temperature_without_bound_draws_evenly(temperature: float) -> None:
    logits = torch.tensor([-80.0, 0.0, 3.0, 80.0])
    hot = Sampling(temperature=temperature, top_k=2**31 - 1, top_p=1.0, seed=2**64 - 1)
    generator = hot.generator()
    counts = torch.tensor([sample(logits, hot, generator) for _ in range(400)]).bincount()
    assert counts.min() > 60  # of 100 each, the seed is fixed


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.1, top_k=0, seed=3)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_are_an_error(value: float, sampling: Sampling) -> None:
    logits = torch.full((6,), -torch.inf)
    logits[4] = value
    with pytest.raises(FloatingPointError, match=r"nan|inf"):
        sample(logits, sampling, sampling.generator())
    logits[4] = 1.5  # the only token that is allowed
    assert sample(logits, sampling, sampling.generator()) == 4
