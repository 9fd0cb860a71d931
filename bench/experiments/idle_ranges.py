"""What ranges cost where nothing records them: one idle range x ranges per step / median step.

python -m dycoke_trt.bench.experiments.idle_ranges BUNDLE [-o FILE]
"""

from __future__ import annotations

import argparse
import json
import time
import timeit
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import Mock

import torch

from ...runtime.pipeline import Pipeline
from ...runtime.request import Request
from ...runtime.stages import ATTENTION, report_to
from ..machine import machine

_REPEATS = 100_000


def measure(bundle: Path, tokens: int = 40) -> dict[str, Any]:
    """One sequence without end tokens, steps timed with nothing recording, then ranges counted."""
    pipeline = Pipeline.from_record(bundle, keep_steps=False)
    visual = pipeline.manifest.visual_tokens(16)
    prompt = pipeline.prompts.build("What happens?", visual)
    table = torch.zeros(visual, pipeline.manifest.llm.hidden)
    times: list[float] = []
    engine, sink = pipeline.engine, Mock()
    engine.submit(Request("idle", prompt, tokens, lambda _: None, table))
    engine.step()  # the prefill
    with report_to(None):
        for _ in range(tokens - 2):
            begun = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - begun)
        # The loop's own time included.
        loops = timeit.repeat("with stage: pass", number=_REPEATS, globals={"stage": ATTENTION})
    with report_to(sink):
        engine.step()
    idle, step = min(loops) / _REPEATS, median(times)
    ranges = sink.push.call_count + sink.begin.call_count
    return {
        "idle_range_seconds": idle,
        "ranges_per_step": ranges,
        "median_step_seconds": step,
        "share": idle * ranges / step,
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
