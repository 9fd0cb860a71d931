"""The bench of reliability: it tells a good server from a bad one, on one server that is shared."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.bench.experiments.reliability import canary, growth, oversize, reload
from dycoke_trt.bench.experiments.reliability.catalogue import TESTS
from dycoke_trt.bench.experiments.reliability.client import Answer
from dycoke_trt.bench.experiments.reliability.fuzz import judge
from dycoke_trt.bench.experiments.reliability.mixed import kind
from dycoke_trt.bench.experiments.reliability.stage import Running, Stage
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.runtime.protocol import POSTPROCESSING
from dycoke_trt.tests.support import demo_bundle

MODULE = "dycoke_trt.bench.experiments.reliability"


@pytest.fixture(scope="module")
def leaking() -> Iterator[Running]:
    """A server whose postprocessing keeps memory of every call."""
    stage = Stage(bundle=demo_bundle(DyCokeConfig(k=0.5, l=2, p=0.5)))
    with stage.server(change=growth.plant) as server:
        yield server


def report(server: Running, output: Path, tests: str) -> dict[str, Any]:
    command = [
        sys.executable, "-m", MODULE, server.grpc, "--metrics", server.metrics, "--http",
        server.http, "--quick", "--tests", tests, "-o", str(output),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert output.exists(), done.stderr
    found: dict[str, Any] = json.loads(output.read_text())
    failed = any(row["status"] == "failed" for row in found["tests"])
    assert done.returncode == int(failed), done.stderr
    return found


def test_a_server_that_is_there_is_tested_without_its_processes(
    leaking: Running, tmp_path: Path
) -> None:
    rows = report(leaking, tmp_path / "report.json", "6,9,13,14")["tests"]
    assert {row["number"]: row["status"] for row in rows} == {
        6: "passed",
        9: "not run",
        13: "not run",
        14: "passed",
    }
    (reuse,) = (row for row in rows if row["number"] == 14)
    assert reuse["figures"]["distinct answers"] > 1
    assert all(row["criterion"] for row in rows)


def test_models_are_loaded_again_under_load() -> None:
    """Before triton_repo/models/metric_families.py the server died of it."""
    outcome = reload.run(Stage(bundle=demo_bundle(DyCokeConfig(k=0.5, l=2, p=0.5))), True)
    assert outcome.passed, outcome


def test_a_planted_leak_is_found_in_its_process_alone(leaking: Running) -> None:
    slopes, _ = asyncio.run(growth._slopes(leaking, 20, 4, 30))
    assert slopes[POSTPROCESSING] > 5 * growth.MOST_MB
    assert slopes[POSTPROCESSING] > 3 * slopes["tensorrt_llm"]


def test_canaries_that_change_are_counted(leaking: Running) -> None:
    sung = canary.sing(leaking.grpc, 1)
    assert canary.changed(sung, canary.sing(leaking.grpc, 1)) == 0
    other = [Answer(text=answer.text + "!", tokens=answer.tokens) for answer in sung]
    assert canary.changed(sung, other) == len(sung) == 3


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        ("", ("answered", "answered")),
        ("in ensemble 'dycoke', max_tokens: 0 is not allowed", ("refused", "refused")),
        ("something is wrong", ("unnamed", "refused")),
        ("AttributeError: 'NoneType' object has no attribute 'decode'", ("internal", "internal")),
        ("RuntimeError: the model failed; the server's log says why", ("internal", "internal")),
        ("64 requests wait already (limit 64); try again later", ("busy", "busy")),
        ("UNAVAILABLE: Socket closed", ("lost", "away")),
        ("HANGS: no end within 60 s", ("lost", "hangs")),
    ],
)
def test_errors_are_told_apart(error: str, kinds: tuple[str, str]) -> None:
    answer = Answer(error=error, complete=not error)
    assert (judge(answer, "max_tokens"), kind(answer, "max_tokens", cancelled=False)) == kinds


def test_a_refusal_has_to_name_value_and_limit() -> None:
    assert oversize._tells("video: 400 frames; allowed: 4 to 32", [400])
    assert not oversize._tells("video: too many frames", [400])
    assert not oversize._tells("video: 400 frames are too many", [400])


def test_fifteen_tests_are_listed_by_number() -> None:
    assert [test.number for test in TESTS] == list(range(1, 16))
