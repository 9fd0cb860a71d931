"""What Triton adds: the server against the same bundle in one process, in one run.

    python -m dycoke_trt.bench.experiments.serving [--layers 24] [--repeats 3] [-o FILE]

Two settings. `demo`: the demo model, whose steps take few milliseconds, so that what a server costs
per token shows; the figure is the processor time of the server's whole process tree beyond that of
the in-process side for the same requests. `0.5B`: a decoder of that shape with random fp32 weights
behind the demo's vision tower; the figures are tokens per second and time to first token.

Both sides run the same loads in turns, never at once: the server idles while the in-process side
works, and what it costs then is measured too. Ratios are made within each repeat; medians of them
are reported. The client is a process of its own, so its time is not the server's, but it shares the
cores. Both sides have the same thread counts, and OMP_WAIT_POLICY=PASSIVE: threads that spin would
keep each other's partners from running. FILE is written anew after every repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ....core.config import DyCokeConfig
from ....cost.dims import preset
from ....demo import MODEL_DIR
from ....engines.cpu import build_cpu
from ....export.bundle import export_bundle
from ....runtime.protocol import BLS, ENSEMBLE
from ....triton_repo.bundle_server import serving_bundle
from ...machine import machine
from ...make_checkpoint import make_servable
from .sides import Outcome, Rounds, Side, cpu_seconds, side

LOCAL = "in-process"
IDLE_SECONDS = 5.0
SETTLE_SECONDS = 0.3  # after a load, until what is left of it is done and counted
CONFIG = DyCokeConfig(k=0.5, l=2, p=0.5)


@dataclass(frozen=True)
class Setting:
    """One model and the loads on it. layers: of the random decoder, 0 for the demo model.

    A random decoder says ids without text: dycoke_bls, which sends text, has no first token then.
    """

    name: str
    layers: int
    threads: int
    tokens_per_block: int
    loads: tuple[Rounds, ...]
    served: tuple[str, ...]


def demo() -> Setting:
    """Rounds such that a side's time is many ticks of the clock that counts it."""
    loads = [Rounds("", streams, max(2, 16 // streams), 8, 128) for streams in (1, 4, 16)]
    return Setting("demo", 0, 1, 8, tuple(loads), (ENSEMBLE, BLS))


def large(layers: int) -> Setting:
    threads = os.cpu_count() or 1
    return Setting("0.5B", layers, threads, 16, (Rounds("", 4, 1, 8, 32),), (ENSEMBLE,))


@contextmanager
def bundle_of(setting: Setting) -> Iterator[Path]:
    """The setting's bundle, with an end id that no model says: every answer has full length."""
    with tempfile.TemporaryDirectory(prefix="dycoke-bench-") as folder:
        model, bundle = Path(folder) / "model", Path(folder) / "bundle"
        if setting.layers:
            dims = replace(preset("llava-ov-0.5b").llm, layers=setting.layers)
            make_servable(model, dims)
        else:
            shutil.copytree(MODEL_DIR, model)
        # The demo's tokenizer ends at 412; ids up to 511 were never trained.
        generation = model / "generation_config.json"
        ends = {**json.loads(generation.read_text()), "eos_token_id": [511]}
        generation.write_text(json.dumps(ends))
        export_bundle(model, bundle, CONFIG, dtype="float32", max_frames=32)
        shutil.rmtree(model)
        tokens = setting.tokens_per_block
        build_cpu(bundle, kv_tokens=16_384, tokens_per_block=tokens, max_batch=16)
        yield bundle


class Bench:
    """Both sides of one setting, and what they measured."""

    def __init__(self, server: int, client: Side, local: Side) -> None:
        self._server, self._client, self._local = server, client, local
        self.runs: dict[str, list[dict[str, float]]] = {}

    def idle(self) -> float:
        """Part of a core that a server without work uses."""
        before = cpu_seconds(self._server)
        time.sleep(IDLE_SECONDS)
        return (cpu_seconds(self._server) - before) / IDLE_SECONDS

    def repeat(self, loads: Sequence[Rounds], served: Sequence[str], *, keep: bool = True) -> None:
        """All loads on all sides once, in turns."""
        for load in loads:
            for name in (LOCAL, *served):
                run = self._run(name, replace(load, model=name))
                if keep:
                    self.runs.setdefault(f"{name} x{load.streams}", []).append(run)
                    print(f"{name} x{load.streams}", json.dumps(run), flush=True)

    def _run(self, name: str, load: Rounds) -> dict[str, float]:
        side, pid = self._client, self._server
        if name == LOCAL:
            side, pid = self._local, self._local.pid
        before = cpu_seconds(pid)
        outcome = side.run(load)
        time.sleep(SETTLE_SECONDS)
        cpu = cpu_seconds(pid) - before
        expected = load.streams * load.rounds * load.tokens
        if outcome.tokens != expected:
            raise RuntimeError(f"{name}: {outcome.tokens} tokens instead of {expected}")
        return figures(outcome, cpu)


def figures(outcome: Outcome, cpu: float) -> dict[str, float]:
    """One run in numbers."""
    row = {
        "tokens_per_second": outcome.tokens / outcome.seconds,
        "tokens_per_response": outcome.tokens / outcome.responses,
        "first_token_ms": 1e3 * median(outcome.first),
        "cpu_us_per_token": 1e6 * cpu / outcome.tokens,
    }
    return {key: float(f"{value:.4g}") for key, value in row.items()}


def summarise(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians of each side, and what each model of the server adds within a repeat."""
    summary = {
        name: {key: median(run[key] for run in rows) for key in rows[0]}
        for name, rows in runs.items()
    }
    for name, rows in runs.items():
        model, _, streams = name.rpartition(" ")
        if model == LOCAL:
            continue
        pairs = list(zip(rows, runs[f"{LOCAL} {streams}"], strict=True))
        speeds = [s["tokens_per_second"] / o["tokens_per_second"] for s, o in pairs]
        firsts = [s["first_token_ms"] / o["first_token_ms"] for s, o in pairs]
        added = [s["cpu_us_per_token"] - o["cpu_us_per_token"] for s, o in pairs]
        summary[name] |= {
            "tokens_per_second_ratio": round(median(speeds), 3),
            "first_token_ratio": round(median(firsts), 3),
            "added_cpu_us_per_token": round(median(added), 1),
        }
    return summary


def run_setting(setting: Setting, repeats: int) -> Iterator[dict[str, Any]]:
    """The setting's report, after each repeat."""
    environment = {"OMP_NUM_THREADS": str(setting.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with bundle_of(setting) as bundle:
        threads = f"--vision-threads={setting.threads}"
        with (
            serving_bundle(bundle, threads=setting.threads, environment=environment) as server,
            side("server_side", server.grpc, environment=environment) as client,
            side("local_side", str(bundle), threads, environment=environment) as local,
        ):
            bench = Bench(server.pid, client, local)
            warm = replace(setting.loads[0], rounds=1, tokens=4)
            bench.repeat([warm], setting.served, keep=False)
            idle = bench.idle()
            for repeat in range(repeats):
                bench.repeat(setting.loads, setting.served)
                yield {
                    "threads": setting.threads,
                    "tokens_per_block": setting.tokens_per_block,
                    "layers": setting.layers or "of the demo model",
                    "frames": setting.loads[0].frames,
                    "tokens_per_request": setting.loads[0].tokens,
                    "repeats": repeat + 1,
                    "idle_server_cores": round(idle, 4),
                    "summary": summarise(bench.runs),
                    "runs": bench.runs,
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24, help="of 0.5B; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": machine("torch", "onnxruntime", "nvidia-pytriton", "grpcio"),
        "wait_policy": "PASSIVE on both sides",
        "config": {"k": CONFIG.k, "l": CONFIG.l, "p": CONFIG.p},
        "settings": {},
    }
    settings = [demo(), *([large(options.layers)] if options.layers else [])]
    for setting in settings:
        for part in run_setting(setting, options.repeats):
            report["settings"][setting.name] = part
            if options.output:
                options.output.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(part["summary"], indent=1))


if __name__ == "__main__":
    main()
