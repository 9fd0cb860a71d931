"""What ranges cost where nothing records them: one idle range x ranges per step / median step.

python -m dycoke_trt.bench.experiments.idle_ranges BUNDLE [-o FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ...runtime.pipeline import Pipeline
from ...runtime.request import Event, Request
from ...runtime.stages import ATTENTION, Stage, report_to
from ..machine import machine


class Counter:
    """A sink that only counts."""

    def __init__(self) -> None:
        self.ranges = 0

    def push(self, name: str) -> None:  # noqa: ARG002
        self.ranges += 1

    def pop(self) -> None: ...

    def begin(self, name: str) -> Any:  # noqa: ARG002
        self.ranges += 1

    def end(self, token: Any) -> None: ...


def idle_range(repeats: int = 100_000, stage: Stage = ATTENTION) -> float:
    """Seconds of one range that goes nowhere, the loop's own time included."""
    with report_to(None):
        begun = time.perf_counter()
        for _ in range(repeats):
            with stage:
                pass
        return (time.perf_counter() - begun) / repeats


def measure(bundle: Path, tokens: int = 40) -> dict[str, Any]:
    """One sequence without end tokens, steps timed with nothing recording, then ranges counted."""
    pipeline = Pipeline.from_record(bundle, keep_steps=False)
    visual = pipeline.manifest.visual_tokens(16)
    prompt = pipeline.prompts.build("What happens?", visual)
    table = torch.zeros(visual, pipeline.manifest.llm.hidden)
    times: list[float] = []
    counter = Counter()

    def ignore(_: Event) -> None: ...

    engine = pipeline.engine
    engine.submit(Request("idle", prompt, tokens, ignore, table))
    engine.step()  # the prefill
    with report_to(None):
        for _ in range(tokens - 2):
            begun = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - begun)
    with report_to(counter):
        engine.step()
    idle = min(idle_range() for _ in range(5))
    step = median(times)
    return {
        "idle_range_seconds": idle,
        "ranges_per_step": counter.ranges,
        "median_step_seconds": step,
        "share": idle * counter.ranges / step,
        "machine": machine("torch", "nvtx"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    report = json.dumps(measure(options.bundle), indent=1)
    print(report)
    if options.output:
        options.output.write_text(report + "\n")


if __name__ == "__main__":
    main()
