"""Sampling: what it refuses, how often it draws what, and its extremes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.sampling import Sampling, sample
from dycoke_trt.tests.runtime.tiny import Client


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


def test_seeded_sampling_does_not_depend_on_neighbours(make_client) -> None:
    sampling = Sampling(temperature=1.3, top_k=0, top_p=0.95, seed=7)
    alone = make_client()
    alone.submit("r", [1, 2], 12, sampling=sampling)
    alone.engine.run_until_idle()
    crowd = make_client()
    for i in range(5):
        crowd.submit(f"n{i}", [i + 1], 12, sampling=Sampling(top_k=5, seed=i))
    crowd.submit("r", [1, 2], 12, sampling=sampling)
    crowd.engine.run_until_idle()
    assert crowd.tokens("r") == alone.tokens("r")
    other = make_client()
    other.submit("r", [1, 2], 12, sampling=Sampling(temperature=1.3, top_k=0, top_p=0.95, seed=8))
    other.engine.run_until_idle()
    assert other.tokens("r") != alone.tokens("r")


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-39, 1e-30])
@pytest.mark.parametrize("top_p", [5e-324, 1e-45, 0.5, 1.0])
def test_a_temperature_near_zero_is_greedy(
    make_client: Callable[..., Client], temperature: float, top_p: float
) -> None:
    client = make_client()
    client.submit("greedy", [1, 2, 3], 8)
    cold = Sampling(temperature=temperature, top_k=0, top_p=top_p, seed=1)
    client.submit("cold", [1, 2, 3], 8, sampling=cold)
    client.engine.run_until_idle()
    assert client.tokens("cold") == client.tokens("greedy") != []
