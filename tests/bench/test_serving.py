"""The benchmark's arithmetic; what it measures is no matter of a test."""

import os
from pathlib import Path

import pytest
from dycoke_trt.bench.experiments.serving.__main__ import figures, summarise
from dycoke_trt.bench.experiments.serving.sides import Outcome, cpu_seconds


def process(proc: Path, pid: int, parent: int, *ticks: int) -> None:
    (proc / str(pid)).mkdir()
    numbers = " ".join(map(str, [*[0] * 9, *ticks, 20, 0]))
    (proc / str(pid) / "stat").write_text(f"{pid} (a (strange) name) S {parent} {numbers}\n")


def test_processor_time_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 1, 2, 3, 4)
    process(tmp_path, 11, 10, 10, 0, 0, 0)
    process(tmp_path, 12, 11, 0, 100, 0, 0)
    process(tmp_path, 13, 1, 5000, 5000, 0, 0)
    assert cpu_seconds(10, tmp_path) == pytest.approx(120 / os.sysconf("SC_CLK_TCK"))


def test_a_run_in_numbers() -> None:
    outcome = Outcome(seconds=2.0)
    outcome.add(1.0, [(1.5, 1), (1.6, 3), (1.7, 0)])  # the last response is empty
    outcome.add(1.0, [(1.7, 4)])
    assert (outcome.tokens, outcome.responses) == (8, 3)
    assert figures(outcome, cpu=0.4) == {
        "tokens_per_second": 4.0,
        "tokens_per_response": 2.667,
        "first_token_ms": 600.0,
        "cpu_us_per_token": 50_000.0,
    }


def test_ratios_are_made_within_a_repeat() -> None:
    """The machine was half as fast in the last two repeats, for both sides."""

    def rows(*speeds: float) -> list[dict[str, float]]:
        return [
            {"tokens_per_second": s, "first_token_ms": 1000 / s, "cpu_us_per_token": 1e5 / s}
            for s in speeds
        ]

    found = summarise({"in-process x4": rows(100, 50, 50), "dycoke x4": rows(80, 40, 30)})
    assert found["in-process x4"]["tokens_per_second"] == 50
    assert found["dycoke x4"]["tokens_per_second_ratio"] == 0.8
    assert found["dycoke x4"]["first_token_ratio"] == 1.25
    assert found["dycoke x4"]["added_cpu_us_per_token"] == 500
