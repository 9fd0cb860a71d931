"""What a launcher and a model's process tell each other, around a model that knows nothing of it.

    TritonPythonModel = alive(Model)

Where no launcher listens, in a server that somebody else started, only the last thing is done:
nothing of a request outlives `finalize`, and the process leaves there.

Outwards: signs of life, and how many requests the process holds. Inwards: that the server ends.
A model may have `in_flight()` (requests that it still holds after `execute`) and
`end_streams(error)` (answers each of them with that error, and what comes later; asked more than
once). The model that clients' requests pass first has `DOOR = True`: it takes none any more once
the server ends.
"""

from __future__ import annotations

import faulthandler
import gc
import io
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.errors import UnavailableError
from ..life import BEAT_SECONDS, VARIABLE, Life, Phase
from .requests import error_response
from .spent import SPENT

# A call that takes longer than this gives no sign of life any more: no stage takes so long.
STUCK_SECONDS = 900.0
_DRAINING = "the server is ending and takes no new requests; ask again in a minute, or another one"
_ENDING = "the server ended before the answer was complete; ask again in a minute, or another one"


def alive(model: type[Any]) -> type[Any]:
    """`model` with signs of life, where a launcher listens; its process ends in `finalize`."""

    class Alive(model):  # type: ignore[misc]
        def initialize(self, args: Mapping[str, str]) -> None:
            _speak_up()
            super().initialize(args)
            self._pulse: Pulse | None = None
            if VARIABLE in os.environ:
                self._pulse = Pulse(self, Life(Path(os.environ[VARIABLE])))
                self._pulse.start()

        def execute(self, requests: list[Any]) -> list[Any] | None:
            if self._pulse is None:
                unwatched: list[Any] | None = super().execute(requests)
                return unwatched
            if getattr(model, "DOOR", False) and self._pulse.phase != Phase.SERVING:
                return [error_response(UnavailableError(_DRAINING)) for _ in requests]
            with self._pulse.working(len(requests)):
                answers: list[Any] | None = super().execute(requests)
                return answers

        def finalize(self) -> None:
            if self._pulse is not None:
                self._pulse.close()
            if hasattr(super(), "finalize"):
                super().finalize()
            # Triton's objects (senders, responses) write to shared memory as they are destroyed,
            # and this process has none any more when Python itself is taken down: those that are
            # left then end it with signal 11. Metrics are never destroyed: metric_families.py.
            self.__dict__.clear()
            SPENT.clear()
            gc.collect()
            _leave()

    return Alive


def _speak_up() -> None:
    """What is printed goes to the log line by line, also the last lines of a process that dies, and
    a crash says where every thread was. The stub's interpreter ignores PYTHON* variables."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable()


def _leave() -> None:
    """Ends this process: the server has its answer and waits for nothing else (python_backend,
    StubLauncher::TerminateStub), while taking an interpreter with torch down takes a second of
    processor time, five of them at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Pulse(threading.Thread):
    """Writes this process's record, four times a second and whenever a call begins or ends."""

    def __init__(self, model: Any, life: Life) -> None:
        super().__init__(name="pulse", daemon=True)
        self._in_flight = getattr(model, "in_flight", lambda: 0)
        self._end_streams = getattr(model, "end_streams", lambda _: None)
        self._life, self._slot = life, life.claim()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._beats = 0
        self._working = 0  # requests of the call that runs
        self._since = 0.0

    @property
    def phase(self) -> Phase:
        return self._life.phase

    @contextmanager
    def working(self, requests: int) -> Iterator[None]:
        """Around one call of `execute`."""
        self._working, self._since = requests, time.monotonic()
        self._write()
        try:
            yield
        finally:
            self._working = 0
            self._write()

    def run(self) -> None:
        while not self._stopping.wait(BEAT_SECONDS):
            if not self._working or time.monotonic() - self._since < STUCK_SECONDS:
                self._beats += 1
            if self._life.phase == Phase.ENDING:
                self._end_streams(UnavailableError(_ENDING))
            self._write()

    def close(self) -> None:
        self._stopping.set()
        self.join()
        self._slot.release()

    def _write(self) -> None:
        with self._lock:
            self._slot.write(os.getpid(), self._beats, self._working + self._in_flight())
