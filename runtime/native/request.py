"""A generation request, what it yields, and its progress inside the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .sampling import Sampling

Finish = Literal["end", "stop", "length", "cancelled", "failed"]


class Event(NamedTuple):
    """New tokens of a request; `finish` is set on its last event, which comes exactly once."""

    request_id: str
    tokens: list[int]
    finish: Finish | None


@dataclass(frozen=True)
class Request:
    """One prompt to be continued.

    prompt: token ids; ids >= vocab size are visual tokens, rows of `embeddings` [V, hidden].
    end_ids: tokens that end the answer; stop: token sequences that end it. Neither is delivered.
    on_event: called from the thread that steps the engine; it must not block.
    """

    request_id: str
    prompt: list[int]
    max_tokens: int
    on_event: Callable[[Event], None]
    embeddings: Tensor | None = None
    sampling: Sampling = field(default_factory=Sampling)
    end_ids: frozenset[int] = frozenset()
    stop: tuple[tuple[int, ...], ...] = ()


@dataclass
class Sequence:
    """A request that owns KV blocks."""

    request: Request
    blocks: list[int]
    generator: torch.Generator
    prefilled: int = 0  # prompt tokens in the pool
    tokens: list[int] = field(default_factory=list)  # generated; the last one is not in the pool
    delivered: int = 0
    finish: Finish | None = None

    @property
    def decoding(self) -> bool:
        return self.prefilled == len(self.request.prompt) and self.finish is None

    @property
    def length(self) -> int:
        """Tokens in context when the newest token is fed."""
        return len(self.request.prompt) + len(self.tokens)

    def append(self, token: int) -> Event | None:
        """Takes the next token; returns what can be delivered now, None if nothing.

        Tokens that may be the beginning of a stop sequence wait until that is decided.
        """
        request = self.request
        if token in request.end_ids:
            return self._end("end", len(self.tokens))
        self.tokens.append(token)
        for stop in request.stop:
            if tuple(self.tokens[-len(stop) :]) == stop:
                # Never take back what was delivered: a prefix of `stop` was always held.
                return self._end("stop", len(self.tokens) - len(stop))
        if len(self.tokens) == request.max_tokens:
            return self._end("length", len(self.tokens))
        ready = len(self.tokens) - self._held()
        if ready <= self.delivered:
            return None
        event = Event(request.request_id, self.tokens[self.delivered : ready], None)
        self.delivered = ready
        return event

    def _held(self) -> int:
        """Length of the longest suffix that begins a stop sequence."""
        longest = 0
        for stop in self.request.stop:
            for size in range(min(len(stop) - 1, len(self.tokens)), longest, -1):
                if tuple(self.tokens[-size:]) == stop[:size]:
                    longest = size
                    break
        return longest

    def _end(self, finish: Finish, upto: int) -> Event:
        self.finish = finish
        return Event(self.request.request_id, self.tokens[self.delivered : upto], finish)
