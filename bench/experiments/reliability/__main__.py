"""Runs the fifteen tests, prints a line for each, and writes what they found."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ....core.errors import DyCokeError
from ...machine import machine
from .catalogue import TESTS
from .outcome import Outcome, Status, Test
from .stage import Running, Stage

_PACKAGES = ("nvidia-pytriton", "torch", "onnxruntime", "numpy", "grpcio")


def main() -> int:
    options = _options()
    target = Path(options.target)
    if target.is_dir():
        stage = Stage(bundle=target)
    else:
        stage = Stage(server=Running(options.target, options.metrics, options.http))
    report: dict[str, Any] = {
        "machine": machine(*_PACKAGES),
        "scale": "quick" if options.quick else "full",
        "target": "bundle" if stage.bundle else "server",
        "tests": [],
    }
    failed = 0
    try:
        for test in TESTS:
            if options.tests and test.number not in options.tests:
                continue
            row = _run(test, stage, options.quick)
            report["tests"].append(row)
            failed += row["status"] == "failed"
            print(f"{test.number:>2} {test.name:<30} {row['status']:<12} {_shown(row)}", flush=True)
            if options.output:
                Path(options.output).write_text(json.dumps(report, indent=1) + "\n")
    finally:
        stage.close()
    return int(failed > 0)


def _run(test: Test, stage: Stage, quick: bool) -> dict[str, Any]:
    begun = time.monotonic()
    status: Status
    if test.bundle and stage.bundle is None:
        status, outcome = "not run", Outcome(False, note="starts servers of its own: give a bundle")
    else:
        try:
            outcome = test.run(stage, quick)
            status = "passed" if outcome.passed else "failed"
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()
            told = f"{type(error).__name__}: {error}; {stage.failure()}".removesuffix("; ")
            status, outcome = "failed", Outcome(False, note=told)
            _close(stage)  # the next test gets a new server
    return {
        "number": test.number,
        "name": test.name,
        "criterion": test.criterion,
        "status": status,
        **{key: value for key, value in asdict(outcome).items() if key != "passed" and value},
        "seconds": round(time.monotonic() - begun, 1),
    }


def _close(stage: Stage) -> None:
    try:
        stage.close()
    except DyCokeError as error:  # the server that died says so once more
        print(error, file=sys.stderr)


def _shown(row: dict[str, Any]) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in row.get("figures", {}).items())
    return " | ".join(part for part in (figures, row.get("note", "")) if part)[:1500]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="a bundle, or HOST:PORT of a server's gRPC")
    parser.add_argument("-o", "--output", help="JSON file")
    parser.add_argument("--quick", action="store_true", help="minutes instead of an hour")
    parser.add_argument(
        "--tests", type=lambda text: {int(n) for n in text.split(",")}, help="numbers, such as 1,5"
    )
    parser.add_argument("--metrics", default="127.0.0.1:8002", help="HOST:PORT of a server's")
    parser.add_argument("--http", default="127.0.0.1:8000", help="HOST:PORT of a server's")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
