"""The native backend on a CPU against transformers' generate (sdpa), same weights, one run.

    OMP_WAIT_POLICY=PASSIVE python -m dycoke_trt.bench.experiments.native_cpu
        [--layers 24] [--frames 16] [--repeats 3] [-o FILE]

A decoder of the 0.5B shape with random fp32 weights; the prompt is a video of random embeddings and
64 tokens of text; 64 tokens are generated. Settings take turns within each repeat, so that drift of
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
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ...arch.qwen2 import LayerWeights, Weights
from ...arch.spec import DecoderSpec
from ...core.config import DyCokeConfig
from ...cost.dims import preset
from ...runtime.blocks import blocks_for
from ...runtime.native.cpu import cpu_runner
from ...runtime.request import Event, Request
from ...runtime.scheduler import EngineLimits, Scheduler
from ..machine import machine

TEXT, NEW, BLOCK = 64, 64, 16


def build(layers: int) -> tuple[Any, DecoderSpec, Weights]:
    """A transformers model with random weights, and the native weights that share its memory."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    dims = preset("llava-ov-0.5b").llm
    torch.manual_seed(0)
    rotary: dict[str, Any] = {"rope_theta": 1e6}  # transformers 5 moves it where it belongs
    config = Qwen2Config(
        **rotary,
        vocab_size=dims.vocab, hidden_size=dims.hidden, intermediate_size=dims.intermediate,
        num_hidden_layers=layers, num_attention_heads=dims.heads,
        num_key_value_heads=dims.kv_heads, max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).requires_grad_(False)
    model.train(False)
    native = []
    for layer in model.model.layers:
        a, m = layer.self_attn, layer.mlp
        native.append(
            LayerWeights(
                input_norm=layer.input_layernorm.weight,
                qkv=torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]),
                qkv_bias=torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]),
                dense=a.o_proj.weight,
                post_norm=layer.post_attention_layernorm.weight,
                gate_up=torch.cat([m.gate_proj.weight, m.up_proj.weight]),
                down=m.down_proj.weight,
            )
        )
    embedding = model.model.embed_tokens.weight
    llm = DecoderSpec(
        **asdict(replace(dims, layers=layers)),
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_positions=32_768,
    )
    return model, llm, Weights(embedding, tuple(native), model.model.norm.weight, embedding)


@torch.no_grad()
def run_transformers(model: Any, embeds: torch.Tensor, batch: int) -> tuple[float, float]:
    """(prefill seconds, decode tokens per second) of `generate`."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    times: list[float] = []

    class Clock(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    begun = time.perf_counter()
    model.generate(
        inputs_embeds=embeds[None].expand(batch, -1, -1),
        attention_mask=torch.ones(batch, len(embeds), dtype=torch.long),
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        stopping_criteria=StoppingCriteriaList([Clock()]),
    )  # fmt: skip
    return times[0] - begun, batch * (NEW - 1) / (times[-1] - times[0])


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
    model, llm, weights = build(options.layers)
    dims = preset("llava-ov-0.5b")
    full = dims.visual_tokens(options.frames, DyCokeConfig.off()) + TEXT
    short = dims.visual_tokens(options.frames, DyCokeConfig.paper()) + TEXT
    embeds = torch.randn(full, llm.hidden) * float(weights.embedding.std())
    pruned = DyCokeConfig(k=0.7, l=3, p=0.7)

    rows: dict[str, list[dict[str, float]]] = {}
    for repeat in range(options.repeats):
        for batch in (1, 4):
            prefill, rate = run_transformers(model, embeds, batch)
            rows.setdefault(f"transformers b{batch}", []).append(
                {"prefill": prefill, "decode": rate}
            )
            for name, config, prompt in (
                ("full", DyCokeConfig.off(), full), ("dycoke", pruned, short)
            ):  # fmt: skip
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
        ratios[f"prefill dycoke / full, b{batch}"] = small["prefill"] / mine["prefill"]
    return medians, ratios


if __name__ == "__main__":
    main()
