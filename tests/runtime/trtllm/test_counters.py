"""What the plugins counted since a moment, over the files of several processes."""

from __future__ import annotations

import json
from pathlib import Path

from dycoke_trt.runtime.trtllm.counters import COUNTS, ROWS, CountersSince, read_counters


def write(path: Path, *rows: int, reorders: int = 0) -> None:
    moves = {"reorders": reorders, "moved": 9 * reorders}
    path.write_text(json.dumps({"rows": dict(zip(ROWS, rows, strict=True)), **moves}))


def counted(*rows: int, reorders: int = 0) -> dict[str, int]:
    return dict(zip(COUNTS, (*rows, reorders, 9 * reorders), strict=True))


def test_counts_grow_from_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "c.1.json", 5, 5, 5, 5, reorders=3)  # an earlier process
    since = CountersSince(str(tmp_path / "c.%p.json"))
    assert since() == counted(0, 0, 0, 0)
    write(tmp_path / "c.2.json", 1, 2, 3, 0, reorders=2)
    assert since() == counted(1, 2, 3, 0, reorders=2)
    write(tmp_path / "c.1.json", 5, 5, 15, 6, reorders=7)  # it was not so early
    assert since() == counted(1, 2, 10, 1, reorders=4)


def test_a_file_of_a_library_that_could_not_move(tmp_path: Path) -> None:
    rows = dict(zip(ROWS, (1, 2, 3, 4), strict=True))
    (tmp_path / "c.json").write_text(json.dumps({"rows": rows}))
    assert read_counters(tmp_path / "c.json") == counted(1, 2, 3, 4)


def test_ranks_count_the_same_rows(tmp_path: Path) -> None:
    since = CountersSince(str(tmp_path / "c.%p.json"))
    write(tmp_path / "c.1.json", 0, 7, 3, 0)
    write(tmp_path / "c.2.json", 0, 7, 2, 0)  # written a moment earlier
    assert since() == counted(0, 7, 3, 0)


def test_a_file_that_is_none_is_passed_over(tmp_path: Path) -> None:
    since = CountersSince(str(tmp_path / "c.%p.json"))
    (tmp_path / "c.1.json").write_text('{"rows": {"fu')
    write(tmp_path / "c.2.json", 1, 0, 0, 0)
    assert since() == counted(1, 0, 0, 0)
