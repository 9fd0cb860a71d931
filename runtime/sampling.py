"""From logits to a token: greedy, temperature, top-k, top-p, seeded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import DyCokeError

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Sampling:
    """How a request picks tokens. temperature=0 and top_k=1 are greedy and ignore the rest.

    temperature: >= 0. top_k: 0 means all tokens. top_p: 0 < top_p <= 1, applied after top_k.
    seed: None draws a fresh one. Raises DyCokeError naming field, value and allowed range.
    """

    temperature: float = 1.0
    top_k: int = 1
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        def refuse(name: str, allowed: str) -> DyCokeError:
            return DyCokeError(f"{name}={getattr(self, name)!r} is not allowed; allowed: {allowed}")

        if not 0 <= self.temperature < float("inf"):
            raise refuse("temperature", "a number >= 0; 0 is greedy")
        if self.top_k < 0:
            raise refuse("top_k", "an integer >= 0; 1 is greedy, 0 takes all tokens")
        if not 0 < self.top_p <= 1:
            raise refuse("top_p", "0 < top_p <= 1")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise refuse("seed", "0 <= seed < 2^64")

    @property
    def greedy(self) -> bool:
        return self.top_k == 1 or self.temperature == 0

    def generator(self) -> Generator:
        """The request's own random numbers: neighbours in a batch do not disturb them."""
        import torch

        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            # torch takes seeds as signed 64-bit numbers.
            generator.manual_seed(self.seed if self.seed < 2**63 else self.seed - 2**64)
        return generator


def sample(logits: Tensor, sampling: Sampling, generator: Generator) -> int:
    """One token id from fp32 logits [vocab]; ties of greedy go to the lowest id.

    Raises FloatingPointError for logits of which the largest is no finite number.
    """
    if sampling.greedy:
        best = int(logits.argmax())
        _check_finite(float(logits[best]))
        return best
    values, ids = logits.float().sort(descending=True, stable=True)
    _check_finite(float(values[0]))  # NaN sorts first
    if 0 < sampling.top_k < len(values):
        values = values[: sampling.top_k]
    # Below the largest and in fp64, so that no temperature overflows or becomes zero.
    scaled = (values - values[0]).double() / sampling.temperature
    probabilities = scaled.float().softmax(-1)
    if sampling.top_p < 1:
        # The smallest set whose mass reaches top_p: a token stays if the mass before it is below,
        # and the likeliest always, however small top_p is.
        cut = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        cut[0] = False
        probabilities = probabilities.masked_fill(cut, 0.0)
    chosen = probabilities.cpu().multinomial(1, generator=generator)
    return int(ids[int(chosen)])


def _check_finite(largest: float) -> None:
    if not math.isfinite(largest):
        raise FloatingPointError(f"the largest logit is {largest}; the model's numbers overflowed")
