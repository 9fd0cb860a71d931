"""The native backend on a CPU against transformers' generate (sdpa), same weights, one run.

    OMP_WAIT_POLICY=PASSIVE python -m dycoke_trt.bench.experiments.native_cpu
        [--layers 24] [--frames 16] [--repeats 3] [-o FILE]

A decoder of the 0.5B shape with random fp32 weights; the prompt is a video of random embeddings and
64 tokens of text; 64 tokens are generated. `dycoke` is the paper's selection, `tuned` what export
takes; where weights are random nearly every selection is new, so it moves more than a model's does.
Settings take turns within each repeat, so that drift of
the machine hits all alike; medians are reported. Prefill: submission to first token. Decode: tokens
after the first over the time after the first. FILE is written anew after every repeat.

PASSIVE lets threads that wait for each other sleep. Where other processes want the cores too,
spinning threads keep their own partners from running, and small operators take ten times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from ...arch.qwen2 import Weights
from ...arch.spec import DecoderSpec
from ...core.config import DyCokeConfig
from ...cost.dims import preset
from ...runtime.blocks import blocks_for
from ...runtime.native.cpu import cpu_runner
from ...runtime.request import Event, Request
from ...runtime.scheduler import EngineLimits, Scheduler
from ..machine import machine
from .qwen2 import random_llm, token_times, transformers_of

TEXT, NEW, BLOCK = 64, 64, 16


def run_native(
    llm: DecoderSpec, weights: Weights, config: DyCokeConfig, embeds: torch.Tensor, batch: int
) -> tuple[float, float, int]:
    """(prefill seconds, decode tokens per second, blocks taken from the pool)."""
    tokens = len(embeds) + NEW
    blocks = batch * blocks_for(tokens, BLOCK)
    engine = Scheduler(
        cpu_runner(llm, weights, blocks, BLOCK, config),
        EngineLimits(max_batch=batch, prefill_chunk=batch * len(embeds)),
    )
    visual = len(embeds) - TEXT
    prompt = list(range(14)) + list(range(llm.vocab, llm.vocab + visual)) + list(range(TEXT - 14))
    firsts: list[str] = []
    last, counted = [0.0], [0]

    def on_event(event: Event) -> None:
        if event.tokens and event.request_id not in firsts:
            firsts.append(event.request_id)
        counted[0] += len(event.tokens)
        last[0] = time.perf_counter()

    begun = time.perf_counter()
    for i in range(batch):
        engine.submit(Request(str(i), prompt, NEW, on_event, embeds[14 : 14 + visual]))
    # Prompts are prefilled one per step; decoding is timed from the step in which all decode.
    while len(firsts) < batch:
        engine.step()
    taken = blocks - engine.blocks.free
    all_first, before = time.perf_counter(), counted[0]
    engine.run_until_idle()
    return all_first - begun, (counted[0] - before) / (last[0] - all_first), taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    where = machine("torch", "transformers")
    dims = preset("llava-ov-0.5b")
    torch.manual_seed(0)
    llm, weights = random_llm(replace(dims.llm, layers=options.layers), torch.float32)
    model = transformers_of(llm, weights)
    full = dims.visual_tokens(options.frames, DyCokeConfig.off()) + TEXT
    short = dims.visual_tokens(options.frames, DyCokeConfig.paper()) + TEXT
    embeds = torch.randn(full, llm.hidden) * float(weights.embedding.std())

    rows: dict[str, list[dict[str, float]]] = {}
    for repeat in range(options.repeats):
        for batch in (1, 4):
            times = token_times(model, embeds.expand(batch, -1, -1), NEW)
            rate = batch * (NEW - 1) / (times[-1] - times[0])
            rows.setdefault(f"transformers b{batch}", []).append(
                {"prefill": times[0], "decode": rate}
            )
            for name, config, prompt in (
                ("full", DyCokeConfig.off(), full),
                ("dycoke", DyCokeConfig.paper(), short),
                ("tuned", DyCokeConfig.tuned(), short),
            ):
                prefill, rate, taken = run_native(llm, weights, config, embeds[:prompt], batch)
                assert taken == batch * blocks_for(prompt + NEW, BLOCK)
                rows.setdefault(f"native {name} b{batch}", []).append(
                    {"prefill": prefill, "decode": rate, "blocks": taken}
                )
            print(f"repeat {repeat + 1}, batch {batch} done", flush=True)
        medians, ratios = summarise(rows)
        report = {
            "machine": where,
            "threads": torch.get_num_threads(),
            "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
            "shape": {"layers": options.layers, "frames": options.frames, "text": TEXT, "new": NEW,
                      "prompt_full": full, "prompt_dycoke": short, "tokens_per_block": BLOCK},
            "repeats": repeat + 1,
            "medians": medians,
            "ratios": ratios,
            "runs": rows,
        }  # fmt: skip
        if options.output:
            options.output.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps({"repeats": repeat + 1, "medians": medians, "ratios": ratios}, indent=1))


def summarise(
    rows: dict[str, list[dict[str, float]]],
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Medians of each setting's runs, and the ratios of medians that matter."""
    medians = {
        name: {key: median(run[key] for run in runs) for key in runs[0]}
        for name, runs in rows.items()
    }
    ratios = {}
    for batch in (1, 4):
        theirs, mine = medians[f"transformers b{batch}"], medians[f"native full b{batch}"]
        small = medians[f"native dycoke b{batch}"]
        ratios[f"decode native full / transformers, b{batch}"] = mine["decode"] / theirs["decode"]
        ratios[f"decode dycoke / full, b{batch}"] = small["decode"] / mine["decode"]
        tuned = medians[f"native tuned b{batch}"]
        ratios[f"decode tuned / dycoke, b{batch}"] = tuned["decode"] / small["decode"]
        ratios[f"prefill dycoke / full, b{batch}"] = small["prefill"] / mine["prefill"]
    return medians, ratios


if __name__ == "__main__":
    main()
