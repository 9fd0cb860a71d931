"""What answers of every way to ask have in common."""

from __future__ import annotations


def decode_speed(tokens: int, first: float, total: float) -> float:
    """Tokens per second after the first, 0 where there is none. first, total: seconds until then
    and until the end."""
    return (tokens - 1) / (total - first) if tokens > 1 and total > first else 0.0
