"""Shorter work begins beside longer, and nobody waits for ever."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from dycoke_trt.runtime.passing import PassingLine
from dycoke_trt.tests.support import until


class Worker(threading.Thread):
    """Takes a turn and holds it until it is told to end."""

    def __init__(self, line: PassingLine, length: int) -> None:
        super().__init__(daemon=True)
        self._line, self._length = line, length
        self._end = threading.Event()
        self.runs = False
        self.start()

    def run(self) -> None:
        with self._line.turn(self._length):
            self.runs = True
            self._end.wait()

    def end(self) -> None:
        self._end.set()
        self.join()


def test_shorter_work_passes_longer() -> None:
    line = PassingLine()
    with line.turn(32), line.turn(16), line.turn(8):  # each begins at once
        equal, longer = Worker(line, 8), Worker(line, 64)
        until(lambda: line.waiting == 2)
        with line.turn(4):
            pass
        assert not equal.runs
        assert not longer.runs
    until(lambda: equal.runs)  # the first of the line; what is longer does not pass it
    assert not longer.runs
    equal.end()
    until(lambda: longer.runs)
    longer.end()


def test_nobody_is_passed_while_he_is_next() -> None:
    """Short work that keeps coming does not begin before long work that came earlier."""
    line = PassingLine()
    with ExitStack() as held:
        held.enter_context(line.turn(4))
        long = Worker(line, 32)
        until(lambda: line.waiting == 1)
        short = Worker(line, 4)
        until(lambda: line.waiting == 2)
        held.close()
    until(lambda: long.runs and short.runs)
    long.end()
    short.end()
