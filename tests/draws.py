"""hypothesis for the tests of kernels; on a GPU machine without it, a few plain random draws."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

EXAMPLES = 12  # the interpreter runs every program in numpy: few examples, each with much in it


class Rejected(Exception):  # noqa: N818
    """An example that a test does not want."""


def plain_assume(condition: object) -> bool:
    if not condition:
        raise Rejected
    return True


class Draw:
    """A strategy: how to draw a value from a source of random numbers."""

    def __init__(self, draw: Callable[[random.Random], Any]) -> None:
        self.draw = draw


def integers(low: int, high: int) -> Draw:
    return Draw(lambda source: source.randint(low, high))


def sampled_from(values: Sequence[Any]) -> Draw:
    return Draw(lambda source: source.choice(values))


def booleans() -> Draw:
    return sampled_from([False, True])


def composite(function: Callable[..., Any]) -> Callable[..., Draw]:
    def make(**options: Any) -> Draw:
        return Draw(lambda source: function(lambda strategy: strategy.draw(source), **options))

    return make


def plain_given(**strategies: Draw) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Runs a test on EXAMPLES draws, the same in every run; pytest sees no arguments."""

    def decorate(test: Callable[..., None]) -> Callable[[], None]:
        def run() -> None:
            for seed in range(EXAMPLES):
                source = random.Random(seed)
                values = {name: strategy.draw(source) for name, strategy in strategies.items()}
                try:
                    test(**values)
                except Rejected:
                    continue
                except Exception as error:
                    error.add_note(f"example {seed}: {values}")
                    raise

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


plain_strategies = SimpleNamespace(
    integers=integers, sampled_from=sampled_from, booleans=booleans, composite=composite,
    DrawFn=Any,
)  # fmt: skip

given: Any
assume: Any
st: Any
few_examples: Any
if find_spec("hypothesis") is not None:
    import hypothesis
    from hypothesis import Phase

    given, assume, st = hypothesis.given, hypothesis.assume, hypothesis.strategies
    # Explaining a failure would trace every line of every example.
    few_examples = hypothesis.settings(
        max_examples=EXAMPLES, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
    )
else:
    given, assume, st = plain_given, plain_assume, plain_strategies

    def few_examples(test: Any) -> Any:
        return test
