"""The files in which the plugins count what decode rows attended to and moved
(plugin/counters.cpp)."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from ...core.decisions import Decision
from ...core.errors import DyCokeError

ROWS = tuple(decision.row for decision in Decision)
MOVES = ("reorders", "moved")  # by an order of importance: rows in which tokens moved, and tokens
COUNTS = (*ROWS, *MOVES)


def counters_path(name: str, process: int | str) -> Path:
    """name: as in DYCOKE_COUNTERS_FILE, where %p is the process; "*" stands for all of them."""
    return Path(name.replace("%p", str(process)))


def read_counters(path: Path) -> dict[str, int]:
    """Rows by decision and what was moved, over all engines of the process: names as in COUNTS.

    Raises DyCokeError for another file. Libraries that could not move anything did not count it.
    """
    try:
        counted = json.loads(path.read_text())
        rows = {name: int(counted["rows"][name]) for name in ROWS}
        return rows | {name: int(counted.get(name, 0)) for name in MOVES}
    except (OSError, ValueError, KeyError, TypeError):
        raise DyCokeError(f"{path}: not a counters file") from None


class CountersSince:
    """What plugins counted since this object was made, over all files of one name.

    Files that were there already are of earlier processes, or begin now. Each rank of a
    tensor-parallel engine counts the same rows, so the file that counted most speaks for all.
    """

    def __init__(self, name: str) -> None:
        """name: as in DYCOKE_COUNTERS_FILE."""
        self._pattern = counters_path(name, "*")
        self._before = self._read()

    def __call__(self) -> dict[str, int]:
        """By name, as in COUNTS; a file that is being replaced counts next time."""
        grown = [
            {name: count - self._before.get(path, {}).get(name, 0) for name, count in now.items()}
            for path, now in self._read().items()
        ]
        return {name: max((counts[name] for counts in grown), default=0) for name in COUNTS}

    def _read(self) -> dict[Path, dict[str, int]]:
        by_file = {}
        for path in self._pattern.parent.glob(self._pattern.name):
            with suppress(DyCokeError):
                by_file[path] = read_counters(path)
        return by_file
