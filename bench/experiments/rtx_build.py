"""Vision engines of the published shapes by TensorRT for RTX: seconds, bytes and memory of a build.

    python -m dycoke_trt.bench.experiments.rtx_build SCRATCH --output bench/results/rtx_build.json

SCRATCH takes the checkpoints (random weights: what a build costs depends on shapes) and bundles,
some GB. The tower and the projector have their real sizes; of the LLM, which is not compiled, two
layers are kept. `dycoke build --vision rtx` runs as a process of its own, whose peak memory the
system tells; on a busy machine its processor time says more than the clock. No engine is run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...bundle.files import open_bundle
from ...bundle.paths import VISION_FILES, VISION_PLAN
from ...bundle.vision_record import read_vision_record
from ...core.config import DyCokeConfig
from ...core.dtype import Dtype
from ...cost.dims import preset
from ...export.bundle import export_bundle
from ..machine import machine
from ..make_checkpoint import make_checkpoint

MODELS = ("llava-ov-0.5b", "llava-ov-7b")
FRAMES = 32
LAYERS = 2  # of the LLM; l = 1 then
CASES = (("float16", ("rtx4090",)), ("bfloat16", ("a100", "a10", "l4", "rtx5090")))


def measure(scratch: Path, models: tuple[str, ...] = MODELS) -> Iterator[Mapping[str, Any]]:
    """One row per model and case."""
    for model in models:
        dims = preset(model)
        checkpoint = scratch / model
        if not checkpoint.is_dir():
            make_checkpoint(
                checkpoint, replace(dims, llm=replace(dims.llm, layers=LAYERS)), Dtype.BF16
            )
        for dtype, targets in CASES:
            bundle = scratch / f"{model}-{dtype}"
            config = DyCokeConfig(l=1)
            export_bundle(checkpoint, bundle, config, dtype=dtype, max_frames=FRAMES, replace=True)
            yield {"model": model, "dtype": dtype, **_build(bundle, targets)}
            shutil.rmtree(bundle)
        shutil.rmtree(checkpoint)


def _build(bundle: Path, targets: tuple[str, ...]) -> dict[str, Any]:
    chosen = [word for target in targets for word in ("--target", target)]
    dycoke = str(Path(sys.executable).parent / "dycoke")
    command = [dycoke, "build", str(bundle), "--vision", "rtx"]
    begin = time.monotonic()
    process = os.posix_spawn(dycoke, [*command, *chosen], os.environ)
    _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - begin
    if status:
        raise SystemExit(f"{' '.join(command + chosen)} failed")
    record = read_vision_record(bundle, open_bundle(bundle))
    graph = sum(f.stat().st_size for name in VISION_FILES if (f := bundle / name).is_file())
    return {
        "targets": list(targets),
        "sms": record.sms,
        "library": f"{record.library} {record.version}",
        "profiles": [[least[1], most[1]] for least, _, most in record.profiles],
        "command_seconds": round(seconds, 1),
        "compile_seconds": record.build_seconds,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        "graph_bytes": graph,
        "engine_bytes": record.files[VISION_PLAN].size,
        "context_bytes": record.activations,
        "layers_checked": record.checked_layers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in measure(arguments.scratch, tuple(arguments.models)):
        print(json.dumps(row), flush=True)
        rows.append({**row, "load_average": round(os.getloadavg()[1], 1)})
        here = machine("tensorrt-rtx-cu12-libs", "onnx", "torch")
        report = {"machine": here, "executed": False, "rows": rows}
        if arguments.output:
            arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
