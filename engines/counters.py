"""The files in which the plugins count what decode rows attended to (plugin/counters.cpp)."""

from __future__ import annotations

import json
from pathlib import Path

from ..core.errors import DyCokeError

ROWS = ("full", "reused", "reselected", "unknown")


def counters_path(name: str, process: int | str) -> Path:
    """name: as in DYCOKE_COUNTERS_FILE, where %p is the process; "*" stands for all of them."""
    return Path(name.replace("%p", str(process)))


def read_counters(path: Path) -> dict[str, int]:
    """Rows by decision, over all engines of the process. Raises DyCokeError for another file."""
    try:
        rows = json.loads(path.read_text())["rows"]
        return {name: int(rows[name]) for name in ROWS}
    except (OSError, ValueError, KeyError, TypeError):
        raise DyCokeError(f"{path}: not a counters file") from None
