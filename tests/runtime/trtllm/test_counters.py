"""What the plugins counted since a moment, over the files of several processes."""

from __future__ import annotations

import json
from pathlib import Path

from dycoke_trt.runtime.trtllm.counters import ROWS, CountersSince


def write(path: Path, *counts: int) -> None:
    path.write_text(json.dumps({"rows": dict(zip(ROWS, counts, strict=True))}))


def counted(*counts: int) -> dict[str, int]:
    return dict(zip(ROWS, counts, strict=True))


def test_counts_grow_from_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "c.1.json", 5, 5, 5, 5)  # an earlier process
    since = CountersSince(str(tmp_path / "c.%p.json"))
    assert since() == counted(0, 0, 0, 0)
    write(tmp_path / "c.2.json", 1, 2, 3, 0)
    assert since() == counted(1, 2, 3, 0)
    write(tmp_path / "c.1.json", 5, 5, 15, 6)  # it was not so early
    assert since() == counted(1, 2, 10, 1)


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
