"""Serves until it is told to end; starts the server again, a bounded number of times."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from ..core.errors import DyCokeError
from .launcher import RunningServer

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0  # seconds; doubled by each restart in a row
_STEADY = 60.0  # seconds of service after which the next restart is a first one
_SETTLED = 600.0  # seconds of service after which all restarts are there again


def supervise(
    start: Callable[[], AbstractContextManager[RunningServer]],
    *,
    restarts: int,
    on_ready: Callable[[RunningServer], None],
    say: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Returns with an exception only: KeyboardInterrupt, or the DyCokeError of the last server.

    restarts: in a row, after a server that was ready failed; a first start that fails is final.
    on_ready, say: told of each server that is ready, and of each that failed.
    """
    used, in_a_row, was_ready = 0, 0, False
    while True:
        began = time.monotonic()
        try:
            with start() as server:
                was_ready, began = True, time.monotonic()
                on_ready(server)
                server.wait()
        except DyCokeError as error:
            if not was_ready:
                raise
            served = time.monotonic() - began
            if served > _SETTLED:
                used = 0
            if served > _STEADY:
                in_a_row = 0
            if used >= restarts:
                spent = f"; it was restarted {used} times already" if restarts else ""
                raise DyCokeError(f"{error}{spent}") from None
            delay = min(_FIRST_DELAY * 2**in_a_row, _LONGEST_DELAY)
            used, in_a_row = used + 1, in_a_row + 1
            say(f"{error}; restart {used} of {restarts} in {delay:.0f} s")
            wait(delay)
