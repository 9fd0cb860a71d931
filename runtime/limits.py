"""What one request may claim and how many may wait: the bounds that are not a video's.

Each has a flag of `dycoke serve` and `dycoke repo` of its name, and every refusal names it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..core.errors import DyCokeError
from .bounds import Bounds


@dataclass(frozen=True)
class RequestLimits(Bounds):
    """Upper bounds, all > 0.

    max_queue: requests that wait before each step; max_wait_seconds: the longest wait there;
    max_answer_seconds: from the beginning of a request's prefill to its last token;
    preprocessors: requests whose videos are decoded at once, each in a process of its own.
    """

    max_question_bytes: int = 65_536
    max_stop_words: int = 64
    max_stop_word_bytes: int = 256
    max_tokens: int = 8192
    max_queue: int = 64
    max_wait_seconds: float = 60.0
    max_answer_seconds: float = 600.0
    preprocessors: int = 2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < 2**31:
                raise DyCokeError(
                    f"{self.flag(name)} {value} is not allowed; allowed: more than 0, below 2^31"
                )

    def check(self, bound: str, field: str, value: int, unit: str) -> None:
        """Raises DyCokeError that begins with `field` where `value` is above the bound."""
        most = getattr(self, bound)
        if value > most:
            raise DyCokeError(
                f"{field}: {value} {unit}; allowed: up to {most} (the server's {self.flag(bound)})"
            )
