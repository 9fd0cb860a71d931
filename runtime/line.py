"""The line that requests wait in, first come, first served, of bounded length."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from ..core.errors import QueueFullError
from .request import Request
from .stages import QUEUE


class Waiting(NamedTuple):
    """A request in line, since when (monotonic seconds), and its open range of `queue`."""

    request: Request
    since: float
    range: Any


class Line:
    """Not safe for several threads at once: the engine's lock is held around each call."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._waiting: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def check_room(self) -> None:
        """Raises QueueFullError where one more would be too many."""
        if len(self._waiting) >= self._longest:
            raise QueueFullError(
                f"{len(self._waiting)} requests wait already (limit {self._longest}); "
                "try again later"
            )

    def add(self, request: Request) -> None:
        self._waiting.append(Waiting(request, time.monotonic(), QUEUE.begin()))

    def first(self) -> Request | None:
        return self._waiting[0].request if self._waiting else None

    def pop(self) -> Request:
        """Takes the first one out."""
        waiting = self._waiting.popleft()
        QUEUE.end(waiting.range)
        return waiting.request

    def remove(self, leaves: Callable[[Waiting], bool]) -> list[Request]:
        """Takes out those that `leaves` says; the others keep their places."""
        kept: deque[Waiting] = deque()
        removed = []
        for waiting in self._waiting:
            if leaves(waiting):
                QUEUE.end(waiting.range)
                removed.append(waiting.request)
            else:
                kept.append(waiting)
        self._waiting = kept
        return removed
