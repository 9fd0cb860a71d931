"""Whose video is read next: short ones pass long ones, and each kind has places of its own.

How long a video takes is known when it was read; what is known before is its size in bytes. So each
begins as a short one, of few bytes first, and one that takes more of the processor than a short one
may becomes long where it runs, or begins again in the line of the long ones if these are enough.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...core.errors import TimeLimitError
from .fork_client import LONG_SECONDS, VideoProcesses
from .work import Frames, VideoWork

# A video is passed by those that come less than a second per so many of its bytes after it, and by
# none that come later than the longest such time: nobody waits for ever.
_BYTES_PER_SECOND, _LONGEST_YIELD = 10e6, 10.0
_LOOK_SECONDS = 0.25  # between questions whether one in line is still wanted


class GiveWay(Exception):  # noqa: N818 - an outcome, no error
    """A video turned out long while as many long ones run as may."""


class Turn:
    """One video in the line. Those with smaller keys go first."""

    def __init__(self, size: int) -> None:
        self.key = time.monotonic() + min(size / _BYTES_PER_SECOND, _LONGEST_YIELD)
        self.is_long = False


class VideoLine:
    """places: videos that are read at once, and as many long ones beside them. wait_seconds: the
    longest wait for a place."""

    def __init__(self, places: int, wait_seconds: float) -> None:
        self._places, self._wait_seconds = places, wait_seconds
        self._changed = threading.Condition()
        self._waiting: list[Turn] = []
        self._running: list[Turn] = []

    @contextmanager
    def place(self, turn: Turn, still_wanted: Callable[[], None]) -> Iterator[None]:
        """Waits for a place and holds it. Raises TimeLimitError, and what `still_wanted` raises,
        which is asked meanwhile."""
        until = time.monotonic() + self._wait_seconds
        with self._changed:
            self._waiting.append(turn)
            try:
                while not self._is_next(turn):
                    self._changed.wait(_LOOK_SECONDS)
                    still_wanted()
                    if time.monotonic() > until:
                        raise TimeLimitError(
                            f"waited in line for more than {self._wait_seconds:g} s (the server's "
                            "--max-wait-seconds); try again later"
                        )
                self._running.append(turn)
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(turn)
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Videos that have no place yet."""
        return len(self._waiting)

    def lengthen(self, turn: Turn) -> None:
        """The video that runs takes long. Raises GiveWay where it may not go on."""
        with self._changed:
            turn.is_long = True
            self._changed.notify_all()
            if self._count(self._running, long=True) > self._places:
                raise GiveWay

    def _is_next(self, turn: Turn) -> bool:
        ahead = (
            other for other in self._waiting if other.is_long == turn.is_long and other is not turn
        )
        free = self._count(self._running, long=turn.is_long) < self._places
        return free and all(turn.key <= other.key for other in ahead)

    @staticmethod
    def _count(turns: list[Turn], *, long: bool) -> int:
        return sum(turn.is_long == long for turn in turns)


class VideoReader:
    """Reads videos in processes of their own, in the order of the line."""

    def __init__(
        self, places: int, wait_seconds: float, long_seconds: float = LONG_SECONDS
    ) -> None:
        self._line = VideoLine(places, wait_seconds)
        self._processes = VideoProcesses(long_seconds)

    def read(self, work: VideoWork, still_wanted: Callable[[], None]) -> Frames:
        """Raises what `VideoProcesses.run` and `VideoLine.place` do."""
        turn = Turn(work.source_bytes)
        while True:
            spent = self._processes.long_seconds if turn.is_long else 0.0
            try:
                with self._line.place(turn, still_wanted):
                    return self._processes.run(
                        work,
                        spent=spent,
                        still_wanted=still_wanted,
                        on_long=lambda: self._line.lengthen(turn),
                    )
            except GiveWay:
                continue

    @property
    def waiting(self) -> int:
        """Videos that have no place yet."""
        return self._line.waiting

    def close(self) -> None:
        self._processes.close()
