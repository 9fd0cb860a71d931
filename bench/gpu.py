"""One GPU, one command: machine rates, kernels next to their floors, serving, transformers.

    python -m dycoke_trt.bench.gpu [-o FILE] [--models llava-ov-7b,llava-ov-0.5b] [--seconds 460]

Weights and videos are random; shapes are those of the checkpoints with 32 frames. Cells that the
time does not allow are reported as skipped, those that memory does not allow as out of memory. On
a machine without a GPU, TRITON_INTERPRET=1 and --tiny try the program out (its times mean nothing).
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..core.config import DyCokeConfig
from ..core.dims import LlmDims, ModelDims, VisionDims, preset
from ..core.floors import Floors, Workload, floors
from ..core.gpus import Gpu
from . import gpu_serving as serving
from .gpu_kernels import time_kernels
from .gpu_rates import CUDA, describe_gpu, measure_rates

TINY = ModelDims(
    "tiny", LlmDims(2, 32, 64, 4, 2, 8, 64, True), VisionDims(1, 72, 96, 2, 4)
)  # fmt: skip
PAPER = DyCokeConfig.paper()
SETTINGS = {  # name -> (configuration, tokens per block)
    "full": (DyCokeConfig.off(), 64),
    "TTM": (PAPER.with_changes(p=0.0), 64),
    "TTM + DP, B=16": (PAPER, 16),
    "TTM + DP, B=32": (PAPER, 32),
    "TTM + DP, B=64": (PAPER, 64),
}
Clock = Callable[[], float]


def guarded(left: Clock, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A cell's figures, or why there are none."""
    if left() <= 0:
        return {"skipped": "no time left"}
    try:
        return work()
    except torch.OutOfMemoryError:
        return {"skipped": "out of memory"}
    finally:
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()


def floor_of(
    model: ModelDims, gpu: Gpu, config: DyCokeConfig, workload: Workload
) -> dict[str, float]:
    found: Floors = floors(model, gpu, config, workload)
    return {"floor_ms_per_token": found.time_per_token * 1e3}


def remaining(end: float) -> float:
    return end - time.perf_counter()


def kernel_rows(
    dims: LlmDims, context: int, batch: int, options: argparse.Namespace, rates: dict[str, float],
    dtype: torch.dtype,
) -> dict[str, Any]:  # fmt: skip
    rate = rates["read_bytes_per_s"]
    return {"rows": list(time_kernels(dims, context, batch, options.block, rate, dtype))}


def measure_model(
    model: ModelDims, options: argparse.Namespace, rates: dict[str, float], left: Clock
) -> dict[str, Any]:
    dtype = torch.bfloat16 if CUDA else torch.float32
    gpu = Gpu("measured", 0, 0, rates["read_bytes_per_s"], rates["bf16_flops"], "this run")
    found: dict[str, Any] = {"model": model.name, "kernels": [], "serving": []}
    found["vision"] = guarded(left, partial(serving.time_vision, model, options.frames, dtype))
    context = serving.visual_tokens(model, options.frames, PAPER) + serving.TEXT + 32
    for batch in options.batches:
        rows = guarded(left, partial(kernel_rows, model.llm, context, batch, options, rates, dtype))
        found["kernels"] += rows.get("rows", [{"batch": batch, **rows}])

    llm, weights = serving.random_llm(model.llm, dtype)
    for batch in options.batches:
        for name, (config, block) in SETTINGS.items():
            if options.tiny and name in ("TTM", "TTM + DP, B=32", "TTM + DP, B=64"):
                continue
            if options.tiny:
                config, block = config.with_changes(l=min(config.l, 1)), 8
            visual = serving.visual_tokens(model, options.frames, config)
            run = partial(serving.serve, llm, weights, config, visual, batch, block, options.new)
            cell = guarded(left, run)
            work = Workload(
                frames=options.frames, batch=batch, text=serving.TEXT,
                generated=options.new // 2, span_start=serving.BEFORE, tokens_per_block=block,
            )  # fmt: skip
            cell |= floor_of(model, gpu, config, work)
            found["serving"].append({"setting": name, "batch": batch, "visual": visual, **cell})
    found["serving"] += measure_transformers(model, options, left, llm, weights)
    return found


def measure_transformers(
    model: ModelDims, options: argparse.Namespace, left: Clock, llm: Any, weights: Any
) -> list[dict[str, Any]]:
    try:
        theirs = serving.build_transformers(model.llm, llm, weights)
    except ImportError:
        return [{"setting": "transformers", "batch": 0, "skipped": "not installed"}]
    rows = []
    for batch in options.batches:
        for name in ("full", "TTM"):
            visual = serving.visual_tokens(model, options.frames, SETTINGS[name][0])
            run = partial(serving.serve_transformers, theirs, visual, batch, options.new)
            cell = guarded(left, run)
            rows.append(
                {"setting": f"transformers, {name}", "batch": batch, "visual": visual, **cell}
            )
    return rows


def table(report: dict[str, Any]) -> str:
    rates = report["rates"]
    lines = [
        f"{report['machine'].get('gpu')}: copy {rates['copy_bytes_per_s'] / 1e12:.2f} TB/s, read "
        f"{rates['read_bytes_per_s'] / 1e12:.2f} TB/s, bf16 {rates['bf16_flops'] / 1e12:.0f} TFLOPS"
    ]
    for model in report["models"]:
        vision = model["vision"]
        lines += ["", f"{model['model']}: vision {vision}"]
        for row in model["kernels"]:
            if "us" in row:
                lines.append(
                    f"  {row['kernel']:32} batch {row['batch']:3} {row['us']:9.1f} us, "
                    f"{row['times_floor']:6.1f} x floor"
                )
        for row in model["serving"]:
            head = f"  {row['setting']:22} batch {row['batch']:3} "
            if "skipped" in row:
                lines.append(head + row["skipped"])
                continue
            line = f"TTFT {row['ttft_s']:7.3f} s  {row['ms_per_token']:8.2f} ms/token"
            if "floor_ms_per_token" in row:
                line += f" (floor {row['floor_ms_per_token']:.2f})"
            line += f"  {row['tokens_per_s']:8.0f} tokens/s  {row['peak_bytes'] / 1e9:6.1f} GB"
            if "DP" in row["setting"]:
                line += f"  reselected {row['reselected']:.0%}"
            lines.append(head + line)
    return "\n".join(lines)


def main() -> None:
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--models", default="llava-ov-7b,llava-ov-0.5b")
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--tiny", action="store_true", help="a model of a few kB, to try it out")
    options = parser.parse_args()
    options.frames, options.new, options.block = (4, 6, 8) if options.tiny else (32, 48, 64)
    if options.tiny:  # the interpreter takes milliseconds for every token
        serving.TEXT, serving.BEFORE = 14, 4
    options.batches = (1,) if options.tiny else (1, 8, 32, 64)
    models = [TINY] if options.tiny else [preset(name) for name in options.models.split(",")]
    report: dict[str, Any] = {"machine": describe_gpu(), "models": []}
    report["rates"] = measure_rates(4096 if options.tiny else 1)
    for index, model in enumerate(models):
        # Each model gets its share of what is left, so that the first cannot eat it all.
        share = (options.seconds - (time.perf_counter() - begun)) / (len(models) - index)
        end = time.perf_counter() + share
        found = measure_model(model, options, report["rates"], partial(remaining, end))
        report["models"].append(found)
        if options.output:  # what is there so far survives a kill
            options.output.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{model.name} done after {time.perf_counter() - begun:.0f} s", flush=True)
    report["seconds"] = time.perf_counter() - begun
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
