"""A request inside an engine: what it has generated, and what of that was delivered."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property

import torch

from .request import Event, Finish, Request
from .stopping import WordMatcher


@dataclass
class Sequence:
    """blocks: of the KV pool that it owns, where that is ours."""

    request: Request
    blocks: list[int] = field(default_factory=list)
    prefilled: int = 0  # prompt tokens in the pool
    tokens: list[int] = field(default_factory=list)  # generated; the last one is not in the pool
    delivered: int = 0
    finish: Finish | None = None
    begun: float = field(default_factory=time.monotonic)  # seconds

    def __post_init__(self) -> None:
        self._stop = WordMatcher(self.request.stop)

    @cached_property
    def generator(self) -> torch.Generator:
        return self.request.sampling.generator()

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
            return self.end("end", len(self.tokens))
        self.tokens.append(token)
        if matched := self._stop.push(token):
            # Never take back what was delivered: a prefix of `stop` was always held.
            return self.end("stop", len(self.tokens) - matched)
        if len(self.tokens) == request.max_tokens:
            return self.end("length", len(self.tokens))
        ready = len(self.tokens) - self._stop.held
        if ready <= self.delivered:
            return None
        event = Event(request.request_id, self.tokens[self.delivered : ready], None)
        self.delivered = ready
        return event

    def end(self, finish: Finish, upto: int) -> Event:
        """The last event, with what was generated before `upto` and not delivered yet."""
        self.finish = finish
        return Event(self.request.request_id, self.tokens[self.delivered : upto], finish)
