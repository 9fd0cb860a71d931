"""The load generator's arithmetic: figures of made-up requests, ratios, statistics, questions."""

from __future__ import annotations

import json
import random
from math import exp
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.bench.load.chart import Line, line_chart
from dycoke_trt.bench.load.compare import compare
from dycoke_trt.bench.load.step_statistics import add, grown, step_rows
from dycoke_trt.bench.load.sweep import Cell, Target, summarise_sweep
from dycoke_trt.bench.load.traffic import Load, Sent, summarise_load
from dycoke_trt.bench.load.workload import read_questions
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime import client

CLIP = Path(__file__).parents[2] / "demo" / "clips" / "colour.mp4"


def test_percentiles_and_rates_leave_failed_requests_out() -> None:
    done = [Sent(0.0, 0.1 * (i + 1), 1.0 + i, 4, [0.02] * 3) for i in range(5)]
    done += [Sent(0.0, total=9.0, error="refused"), Sent(0.0, 0.01, 8.0, 7, cancelled=True)]
    summary = summarise_load(done, 10.0, ttft_limit=0.25)
    assert (summary["sent"], summary["answered"], summary["errors"]) == (7, 5, {"refused": 1})
    assert summary["cancelled"] == 1
    assert summary["ttft"]["p50"] == pytest.approx(0.3)
    assert summary["end_to_end"]["p50"] == pytest.approx(3.0)
    assert summary["inter_token"]["p99"] == pytest.approx(0.02)
    assert summary["requests_per_second"] == 0.5
    assert summary["tokens_per_second"] == 2.0
    assert summary["goodput"] == 0.2  # of 0.1 and 0.2 s
    assert summary["in_time"] == pytest.approx(2 / 7)


def test_nothing_answered_has_no_percentiles() -> None:
    summary = summarise_load([Sent(0.0, error="gone")], 1.0)
    assert summary["ttft"] is summary["inter_token"] is summary["end_to_end"] is None
    assert summary["goodput"] is None


@pytest.mark.parametrize("wrong", [{"requests": 0}, {"concurrency": 0}, {"rate": 0.0}])
def test_loads_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DyCokeError, match="allowed"):
        Load(**{"requests": 1, **wrong})


def test_the_interval_holds_the_true_ratio_19_times_of_20() -> None:
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        machine = [exp(draw.gauss(0, 2)) for _ in range(5)]  # slows both servers of a round down
        fast = [m * exp(draw.gauss(0, 0.1)) for m in machine]
        slow = [1.3 * m * exp(draw.gauss(0, 0.1)) for m in machine]
        ratio = compare(slow, fast)
        assert ratio.low is not None
        assert ratio.high is not None
        hits += ratio.low < 1.3 < ratio.high
    assert 0.94 < hits / 2000 < 0.96
    single = compare([2.0], [1.0])
    assert (single.low, single.high, single.rounds) == (None, None, 1)
    assert single.value == pytest.approx(2.0)
    assert compare([2.0] * 40, [1.0] * 40).low == pytest.approx(2.0)


def cell(name: str, number: int, seconds: float, first: float) -> Cell:
    done = [Sent(0.0, first, 2 * first, 3, [first / 2] * 2)] * 2
    counts = {"success": 2, "fail": 0, "queue_ns": 10**6, "compute_ns": 6 * 10**9}
    target = Target(name, "host:1")
    return Cell(target, Load(2, 4), number, done, seconds, {"vision_ttm": counts})


def test_rounds_are_pooled_and_compared_pair_by_pair() -> None:
    cells = [cell("a", 0, 1.0, 0.1), cell("b", 0, 2.0, 0.2)]
    cells += [cell("b", 1, 20.0, 2.0), cell("a", 1, 10.0, 1.0)]  # the machine was slow
    cells += [Cell(Target("a", "host:1"), Load(2, 4), 2)]  # stopped before its first answer
    found = summarise_sweep(cells)
    a, b = found["points"]
    assert (a["server"], a["rounds"], a["sent"], a["seconds"]) == ("a", 2, 4, 11.0)
    assert a["steps"] == [
        {"model": "vision_ttm", "count": 4, "failed": 0, "queue": pytest.approx(0.0005),
         "compute": pytest.approx(3.0)}
    ]  # fmt: skip
    assert b["requests_per_second"] == pytest.approx(4 / 22)
    ratios = {row["metric"]: row["value"] for row in found["comparison"]}
    assert ratios["ttft"] == ratios["end_to_end"] == pytest.approx(2.0)
    assert ratios["tokens_per_second"] == pytest.approx(0.5)
    assert summarise_sweep(cells[:1])["comparison"] == []


def test_statistics_are_differences_and_add_up() -> None:
    def counters(success: int, queue: int) -> dict[str, dict[str, int]]:
        return {"m": {"success": success, "fail": 0, "queue_ns": queue, "compute_ns": 0}}

    first = grown(counters(5, 100), counters(8, 400))
    assert first == counters(3, 300)
    assert add([first, first, {}]) == counters(6, 600)
    (row,) = step_rows({**add([first, first]), "idle": counters(0, 0)["m"]})
    assert (row["count"], row["queue"]) == (6, pytest.approx(1e-7))


SIZE = 32


def test_of_a_large_video_frames_are_sent_as_the_server_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"video": str(CLIP), "question": "What?"}))
    monkeypatch.setattr(client, "MAX_FILE_BYTES", CLIP.stat().st_size - 1)
    (question,) = read_questions(path, 16, 64, lambda: SIZE)
    assert question.values["video_bytes_input"].shape == (1, 16, SIZE, SIZE, 3)


def test_a_file_of_questions(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    rows: list[dict[str, Any]] = [
        {"video": "clip.mp4", "question": "What?"},
        {"video": str(CLIP), "question": "Why?", "frames": 8, "max_tokens": 3, "top_p": 0.5,
         "temperature": 1, "stop_words": ["a"], "cancel_after": 2},
    ]  # fmt: skip
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    plain, rich = read_questions(path, 16, 64, lambda: SIZE)
    assert plain.values["video_file_input"] == rich.values["video_file_input"]
    assert (plain.values["num_frames"], plain.values["max_tokens"]) == (16, 64)
    assert (plain.cancel_after, rich.cancel_after) == (0, 2)
    wanted = {"num_frames": 8, "max_tokens": 3, "top_p": 0.5, "stop_words": [b"a"]}
    assert wanted.items() <= rich.values.items()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ('["a"]', "line 2: not an object"),
        ('{"video": "x.mp4"}', "keys video and question"),
        ('{"video": "x.mp4", "question": "?", "beams": 4}', "unknown key 'beams'; allowed: video"),
        ('{"video": "x.mp4", "question": "?", "top_k": "1"}', "top_k: '1' has the wrong type"),
        ('{"video": "x.mp4", "question": "?", "cancel_after": -1}', "cancel_after: -1"),
        ('{"video": "no.mp4", "question": "?"}', "no.mp4: no such file"),
        (f'{{"video": "{CLIP}", "question": "?", "top_k": {2**40}}}', "top_k: 1099511627776"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"video": str(CLIP), "question": "?"}) + f"\n{line}\n")
    with pytest.raises(DyCokeError) as caught:
        read_questions(path, 16, 64, lambda: SIZE)
    assert f"{path}, line 2: " in str(caught.value)
    assert said in str(caught.value)


def test_a_chart_shows_every_value_below_its_highest_line() -> None:
    for most in (0.0003, 0.9, 1.0, 7.0, 55.0, 1234.0):
        chart = line_chart("T", "ms", "x", ["1", "2"], [Line("<a>", [most, None], [most, None])])
        assert chart.count("<circle") == 1
        (height,) = [float(part.split('"')[0]) for part in chart.split('cy="')[1:]]
        assert 12 <= height < 100  # in the upper half of the drawing
        assert "<a>" not in chart
    assert "NaN" not in line_chart("T", "ms", "x", ["1"], [Line("a", [None])])
