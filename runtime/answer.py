"""What answers of every way to ask have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer with its measurements: counts of tokens, seconds since the request began.

    visual_tokens_before, visual_tokens: around TTM; None where a server does not say.
    """

    text: str
    input_tokens: int
    output_tokens: int
    visual_tokens_before: int | None
    visual_tokens: int | None
    time_to_first_token: float
    total_time: float

    @property
    def tokens_per_second(self) -> float:
        """After the first token; 0 where there are none."""
        seconds = self.total_time - self.time_to_first_token
        return (self.output_tokens - 1) / seconds if self.output_tokens > 1 and seconds > 0 else 0.0
