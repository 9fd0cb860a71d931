"""The stand-in for hypothesis draws, rejects, and fails where a test does."""

from __future__ import annotations

import random

import pytest
from dycoke_trt.tests import draws


def test_every_example_is_drawn_and_the_same_again() -> None:
    @draws.composite
    def pair(draw: draws.Draw, *, high: int) -> tuple[int, bool]:
        return draw(draws.integers(1, high)), draw(draws.booleans())  # type: ignore[operator]

    seen: list[tuple[int, bool]] = []

    @draws.plain_given(value=pair(high=5))
    def test(value: tuple[int, bool]) -> None:
        draws.plain_assume(value[0] > 1)
        seen.append(value)

    test()
    first = list(seen)
    test()
    assert seen == first * 2
    assert 0 < len(first) <= draws.EXAMPLES
    assert {number for number, _ in first} <= {2, 3, 4, 5}


def test_a_failure_names_its_example() -> None:
    @draws.plain_given(value=draws.sampled_from([3, 4]))
    def test(value: int) -> None:
        assert value == 3

    with pytest.raises(AssertionError) as caught:
        test()
    first = next(s for s in range(draws.EXAMPLES) if random.Random(s).choice([3, 4]) == 4)
    assert caught.value.__notes__ == [f"example {first}: {{'value': 4}}"]
