"""A line of one, in which shorter work passes longer: it is done beside it and not after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PassingLine:
    """First come, first served, one at a time; but what is shorter than all that runs begins at
    once. So nobody waits for longer work than his own, nobody is passed while he is the next, and
    no more run at once than there are lengths."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, object]] = []  # in the order in which they came
        self._running: list[int] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextmanager
    def turn(self, length: int) -> Iterator[None]:
        """length: in any unit, the same for all."""
        mine = (length, object())
        with self._changed:
            self._waiting.append(mine)
            self._changed.wait_for(lambda: self._may_begin(mine))
            self._waiting.remove(mine)
            self._running.append(length)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(length)
                self._changed.notify_all()

    def _may_begin(self, mine: tuple[int, object]) -> bool:
        if not self._running:
            return self._waiting[0] is mine
        shortest = min(self._waiting, key=lambda waiting: waiting[0])  # the first of equals
        return shortest is mine and mine[0] < min(self._running)
