"""Notices what goes wrong with a server that runs: a process that dies, and one that hangs.

A dead process is seen at once, by its descriptor. A hanging one (stopped, swapped out, in a
deadlock) stays "ready" for Triton; what shows it is that its signs of life (life.py) do not change.
Looks are counted and not seconds: when a whole machine was paused, all have missed the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .life import Life
from .processes import Stub, how_it_ended, stubs_of, wait_for_death

LOOK_SECONDS = 1.0


class Watch:
    """hang_seconds: how long a process may give no sign of life; 0 does not look. is_live: whether
    the server answers. is_loaded: whether a model is still served; None if clients cannot unload.
    """

    def __init__(
        self,
        server: int,
        repository: Path,
        life: Life,
        *,
        hang_seconds: float,
        is_live: Callable[[], bool],
        is_loaded: Callable[[str], bool] | None,
    ) -> None:
        self._server, self._repository, self._life = server, repository, life
        self._hang_seconds, self._is_live, self._is_loaded = hang_seconds, is_live, is_loaded
        self._stubs = stubs_of(server, repository)
        self._instances = Counter(stub.model for stub in self._stubs)
        self._beats: dict[int, int] = {}
        self._missed: dict[int, int] = {}  # looks in a row without a sign of life

    def failure(self, wake: int) -> str | None:
        """Waits for the first thing that goes wrong and says what; None once the descriptor `wake`
        is readable."""
        while True:
            try:
                first = wait_for_death(self._server, self._stubs, wake, LOOK_SECONDS)
            except TimeoutError:
                if self._hang_seconds and (hanging := self._hanging()):
                    return f"{hanging} gave no sign of life for {self._hang_seconds:.0f} s"
            else:
                if first is None:
                    return None
                if not isinstance(first, Stub):
                    return f"the server died ({how_it_ended(self._server)})"
                if self._is_loaded is None:
                    return _died(first)
            if self._is_loaded is not None:
                for stub in self._gone():
                    # A client unloaded it, or loaded it again: its new processes are there by now.
                    left = sum(other.model == stub.model for other in self._stubs)
                    if self._is_loaded(stub.model) and left < self._instances[stub.model]:
                        return _died(stub)

    def _gone(self) -> list[Stub]:
        """Takes the processes that there are now; those that are not any more, also such as ended
        since the wait."""
        before, self._stubs = self._stubs, stubs_of(self._server, self._repository)
        return [stub for stub in before if stub not in self._stubs]

    def _hanging(self) -> str:
        """Looks once; the process that missed too many looks, or ""."""
        models = {stub.pid: stub.model for stub in self._stubs}
        beats = {sign.pid: sign.beats for sign in self._life.signs() if sign.pid in models}
        missed = {pid for pid, count in beats.items() if self._beats.get(pid) == count}
        if not self._is_live():
            missed.add(self._server)
        self._beats = beats
        self._missed = {pid: self._missed.get(pid, 0) + 1 for pid in missed}
        for pid, looks in self._missed.items():
            if looks * LOOK_SECONDS >= self._hang_seconds:
                return f"model {models[pid]}" if pid in models else "the server"
        return ""


def _died(stub: Stub) -> str:
    how = how_it_ended(stub.pid)
    return f"model {stub.model} died{f' ({how})' if how else ''}"
