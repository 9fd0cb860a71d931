"""One GPU, one command: machine rates, kernels next to their floors, serving, transformers.

    python -m dycoke_trt.bench.experiments.gpu [-o FILE] [--models NAME,NAME] [--seconds 460]

Weights and videos are random; shapes are those of the checkpoints with 32 frames. What the targets
need comes first; a cell that would take longer than the time that is left, or more memory than
there is, says so in its row. The file is written after every cell, so a run that is cut keeps what
it has. On a machine without a GPU, TRITON_INTERPRET=1 and --tiny try the program out (its times
mean nothing).
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ....core.config import DyCokeConfig
from ....cost.dims import LlmDims, ModelDims, VisionDims, preset
from ....cost.floors import Workload, floors
from ....cost.gpus import Gpu
from ..qwen2 import random_llm, transformers_of
from . import serving
from .aims import target_lines, targets
from .kernels import time_kernels
from .rates import CUDA, DEVICE, clocks, describe_gpu, measure_rates

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
    "tuned, B=64": (DyCokeConfig.tuned(), 64),
}
# Cells by their worth: what a target needs, then the rest of ours, then the rest of transformers'.
NEEDED, OURS, THEIRS = range(3)


@dataclass(frozen=True)
class Sizes:
    """frames: of a video; new: tokens timed per request; block: of the kernels' rows."""

    frames: int = 32
    new: int = 48
    block: int = 64
    batches: tuple[int, ...] = (1, 8, 32, 64)
    settings: tuple[str, ...] = tuple(SETTINGS)


class Cell(NamedTuple):
    """One measurement. part: list of the model's report that gets its rows."""

    worth: int
    bench: ModelBench
    part: str
    batch: int
    setting: str = ""


@dataclass
class ModelBench:
    """One model: its weights, which are made when first needed, and its report."""

    model: ModelDims
    sizes: Sizes
    rates: dict[str, float]
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = ("vision", "kernels", "serving")
        self.report = {"model": self.model.name, **{part: [] for part in parts}}

    @cached_property
    def llm(self) -> tuple[Any, Any]:
        return random_llm(self.model.llm, torch.bfloat16 if CUDA else torch.float32, DEVICE)

    @cached_property
    def theirs(self) -> Any:
        return transformers_of(*self.llm)

    def cells(self) -> Iterator[Cell]:
        batches = self.sizes.batches
        edges = {batches[0], batches[-1]}
        yield Cell(NEEDED, self, "vision", 1)
        for batch in batches:
            yield Cell(NEEDED if batch in edges else OURS, self, "kernels", batch)
        compared = 8 if 8 in batches else batches[0]  # with transformers
        for batch in batches:
            for name in self.sizes.settings:
                # Ratios are of full decoding, so that comes first, at every batch of a target.
                full = name == "full" and batch in edges | {compared}
                needed = full or (batch == batches[-1] and "DP" in name)
                yield Cell(NEEDED if needed else OURS, self, "serving", batch, name)
        for batch in batches:
            for name in ("full", "TTM"):
                needed = (batch, name) == (compared, "full")
                setting = f"transformers, {name}"
                yield Cell(NEEDED if needed else THEIRS, self, "serving", batch, setting)

    def setting(self, name: str) -> tuple[DyCokeConfig, int]:
        config, block = SETTINGS[name.removeprefix("transformers, ")]
        if self.model is TINY:
            config, block = config.with_changes(l=min(config.l, 1)), self.sizes.block
        return config, block

    def floor(self, cell: Cell) -> Any:
        """Floors of a serving cell at this run's own rates."""
        config, block = self.setting(cell.setting)
        rates = self.rates
        gpu = Gpu("measured", 0, 0, rates["read_bytes_per_s"], rates["bf16_flops"], "this run")
        work = Workload(
            frames=self.sizes.frames, batch=cell.batch, text=serving.TEXT,
            generated=(self.sizes.new + cell.batch) // 2, span_start=serving.BEFORE,
            tokens_per_block=block,
        )  # fmt: skip
        return floors(self.model, gpu, config, work)

    def guess(self, cell: Cell) -> float:
        """Seconds that a cell will about take, from floors; transformers prefills twice."""
        if cell.part != "serving":
            return 15.0
        bounds = self.floor(cell)
        theirs = cell.setting.startswith("transformers")
        prefill = bounds.stages[2].seconds * (6 if theirs else 3)
        steps = self.sizes.new + (0 if theirs else cell.batch)
        return float(8 + prefill + steps * max(3 * bounds.time_per_token, 0.04 if theirs else 0))

    def run(self, cell: Cell) -> list[dict[str, Any]]:
        model, sizes = self.model, self.sizes
        if cell.part == "vision":
            dtype = torch.bfloat16 if CUDA else torch.float32
            return [serving.time_vision(model, sizes.frames, dtype)]
        if cell.part == "kernels":
            context = model.visual_tokens(sizes.frames, PAPER) + serving.TEXT + 32
            dtype = torch.bfloat16 if CUDA else torch.float32
            rate = self.rates["read_bytes_per_s"]
            return list(time_kernels(model.llm, context, cell.batch, sizes.block, rate, dtype))
        config, block = self.setting(cell.setting)
        visual = model.visual_tokens(sizes.frames, config)
        if cell.setting.startswith("transformers"):
            row = serving.serve_transformers(self.theirs, visual, cell.batch, sizes.new)
        else:
            row = serving.serve(*self.llm, config, visual, cell.batch, block, sizes.new)
            moved = self.floor(cell).stages[-1].bytes / self.rates["read_bytes_per_s"]
            row["byte_floor_ms_per_token"] = moved * 1e3
        return [{"visual": visual, **row}]


def measure(cell: Cell, left: float) -> list[dict[str, Any]]:
    """A cell's rows, or one row that says why there are none."""
    needed = cell.bench.guess(cell)
    if needed > left:
        return [{"skipped": f"would take about {needed:.0f} s, {max(left, 0):.0f} s are left"}]
    try:
        return cell.bench.run(cell)
    except torch.OutOfMemoryError:
        return [{"skipped": "out of memory"}]
    except ImportError as error:
        return [{"skipped": f"{error.name} is not installed"}]
    finally:
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()


def table(report: dict[str, Any]) -> str:
    rates = report["rates"]
    lines = [
        f"{report['machine'].get('gpu')}: copy {rates['copy_bytes_per_s'] / 1e12:.2f} TB/s, read "
        f"{rates['read_bytes_per_s'] / 1e12:.2f} TB/s, bf16 {rates['bf16_flops'] / 1e12:.0f} TFLOPS"
    ]
    for model in report["models"]:
        lines += ["", model["model"]]
        for row in model["vision"] + model["kernels"] + model["serving"]:
            head = f"  {row['setting'] or row.get('kernel', row['part']):34} "
            head += f"batch {row['batch']:3} "
            if "skipped" in row:
                lines.append(f"{head} not measured: {row['skipped']}")
            elif "encoder_ms" in row:
                lines.append(
                    f"{head} encoder {row['encoder_ms']:.2f} ms, TTM {row['ttm_ms']:.3f} ms"
                )
            elif "us" in row:
                times = f"{row['us']:9.1f} us, {row['times_floor']:6.1f} x floor"
                lines.append(f"{head} {times}")
            else:
                lines.append(f"{head} {_serving_line(row)}")
    return "\n".join(lines)


def _serving_line(row: dict[str, Any]) -> str:
    line = f"TTFT {row['ttft_s']:7.3f} s  {row['ms_per_token']:8.2f} ms/token"
    if "byte_floor_ms_per_token" in row:
        line += f" (graph {row['graph_ms']:.2f}, floor {row['byte_floor_ms_per_token']:.2f})"
    line += f"  {row['tokens_per_s']:8.0f} tokens/s  {row['peak_bytes'] / 1e9:6.1f} GB"
    if "DP" in row["setting"]:
        line += f"  reselected {row['reselected']:.0%}"
    return line


def main() -> None:
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--models", default="llava-ov-7b,llava-ov-0.5b")
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--tiny", action="store_true", help="a model of a few kB, to try it out")
    options = parser.parse_args()
    sizes, models = Sizes(), [preset(name) for name in options.models.split(",")]
    if options.tiny:  # the interpreter takes milliseconds for every token
        sizes = Sizes(4, 6, 8, (1,), ("full", "TTM + DP, B=16"))
        models, serving.TEXT, serving.BEFORE = [TINY], 14, 4
    rates = measure_rates(4096 if options.tiny else 1)
    benches = [ModelBench(model, sizes, rates) for model in models]
    report: dict[str, Any] = {
        "machine": describe_gpu(), "rates": rates, "models": [bench.report for bench in benches],
    }  # fmt: skip

    def save() -> None:
        report["targets"] = targets(report)
        report["seconds"] = time.perf_counter() - begun
        if options.output:
            options.output.write_text(json.dumps(report, indent=1) + "\n")

    save()
    cells = [cell for bench in benches for cell in bench.cells()]
    for cell in sorted(cells, key=lambda cell: cell.worth):  # stable: the first model first
        rows = measure(cell, options.seconds - (time.perf_counter() - begun))
        name = {"part": cell.part, "setting": cell.setting, "batch": cell.batch}
        cell.bench.report[cell.part] += [{**name, **row} for row in rows]
        save()
        now = time.perf_counter() - begun
        label = f"{cell.bench.model.name} {cell.setting or cell.part}"
        note = f": {rows[0]['skipped']}" if "skipped" in rows[0] else ""
        print(f"{now:4.0f} s  {label}, batch {cell.batch}{note}", flush=True)
    report["machine"]["clocks_after"] = clocks()
    save()
    print(table(report))
    print("\n".join(["", *target_lines(report["targets"])]))


if __name__ == "__main__":
    main()
