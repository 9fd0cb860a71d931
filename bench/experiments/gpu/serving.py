"""A whole model with random weights: time to first token, decoding, memory; and transformers'."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ....arch.qwen2 import Weights
from ....arch.siglip import VisionModel, fused_attention
from ....arch.spec import DecoderSpec, PixelScale, TowerSpec, VisionSpec
from ....compress.base import compressor_of
from ....core.config import DyCokeConfig
from ....core.decisions import Decision
from ....cost.dims import ModelDims
from ....runtime.blocks import blocks_for
from ....runtime.native.cuda import cuda_runner
from ....runtime.native.graphs import GraphDecoder
from ....runtime.request import Event, Request
from ....runtime.scheduler import EngineLimits, Scheduler
from ....runtime.vision_torch import TorchVision
from ..qwen2 import token_times
from .rates import CUDA, DEVICE, seconds, synchronise

TEXT, BEFORE = 64, 14  # tokens of text in a prompt; those before the video


def random_vision(model: ModelDims, dtype: torch.dtype) -> TorchVision:
    """The tower and projector of a model; heads of 72 as in SigLIP-so400m."""
    v, config = model.vision, DyCokeConfig.paper()
    tower = TowerSpec(
        **asdict(v),
        heads=max(1, v.hidden // 72),
        image_size=v.patches_per_side * v.patch,
        layer_norm_eps=1e-6,
        tanh_gelu=True,
    )
    compressor = compressor_of(config, v.tokens_per_frame)
    spec = VisionSpec(tower, model.llm.hidden, PixelScale(), compressor, model.newline)
    module = VisionModel(spec, dtype, attention=fused_attention)
    weights = {
        name: torch.randn(parameter.shape, device=DEVICE, dtype=dtype) * 0.02
        for name, parameter in module.named_parameters()
    }
    module.load_state_dict(weights, assign=True)
    return TorchVision(module.to(DEVICE), kernels=True)


def time_vision(model: ModelDims, frames: int, dtype: torch.dtype) -> dict[str, float]:
    """Milliseconds of the vision encoder without TTM, and of TTM alone, for one video."""
    vision, v = random_vision(model, dtype), model.vision
    side = v.patches_per_side * v.patch
    video = torch.randint(0, 256, (frames, 3, side, side), dtype=torch.uint8, device=DEVICE)
    with torch.no_grad():
        encoder = seconds(lambda: vision.model.features(video), repeats=3)
        features = torch.randn(
            frames, v.tokens_per_frame, model.llm.hidden, device=DEVICE, dtype=dtype
        )
        survivors = len(vision.survivors(features))
        merge = seconds(lambda: features.flatten(0, 1)[vision.survivors(features)])
    return {"encoder_ms": encoder * 1e3, "ttm_ms": merge * 1e3, "survivors": survivors}


def serve(
    llm: DecoderSpec, weights: Weights, config: DyCokeConfig, visual: int, batch: int, block: int,
    new: int,
) -> dict[str, Any]:  # fmt: skip
    """`batch` equal requests through the engine.

    ttft: from submission until every request has its first token. Decoding is timed from there
    over the steps in which all decode: requests that began first have a few tokens more. graph: a
    step without what the host does between two of them.
    """
    prompt_length = visual + TEXT
    tokens = batch + new  # the first one decodes while the others are prefilled
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    blocks = batch * blocks_for(prompt_length + tokens, block)
    runner = cuda_runner(llm, weights, blocks, block, config, max_batch=batch)
    engine = Scheduler(runner, EngineLimits(max_batch=batch, prefill_chunk=prompt_length))
    decoder = runner.decoder
    assert isinstance(decoder, GraphDecoder)
    video = torch.randn(visual, llm.hidden, device=DEVICE, dtype=weights.embedding.dtype) * 0.02
    ids = list(range(BEFORE)) + list(range(llm.vocab, llm.vocab + visual))
    ids += list(range(TEXT - BEFORE))
    begun_decoding: set[str] = set()

    def on_event(event: Event) -> None:
        if event.tokens:
            begun_decoding.add(event.request_id)

    def submit(name: str, count: int) -> None:
        engine.submit(Request(name, ids, count, on_event, video))

    submit("warm-up", 3)  # compiles what a request needs
    engine.run_until_idle()
    decoder.prepare(batch, blocks // batch)
    begun_decoding.clear()
    synchronise()
    begun = time.perf_counter()
    for i in range(batch):
        submit(str(i), tokens)
    while len(begun_decoding) < batch:
        engine.step()
    first = time.perf_counter() - begun
    engine.step()  # the first one of the whole batch: its table goes to the device
    before = list(decoder.selection.decisions)
    synchronise()
    begun, steps = time.perf_counter(), new - 4
    for _ in range(steps):
        engine.step()
    synchronise()
    per_step = (time.perf_counter() - begun) / steps
    done = [now - b for now, b in zip(decoder.selection.decisions, before, strict=True)]
    graph = graph_seconds(decoder, batch, blocks // batch)
    for name in [str(i) for i in range(batch)]:
        engine.cancel(name)
    engine.step()
    return {
        "ttft_s": first, "ms_per_token": per_step * 1e3, "tokens_per_s": batch / per_step,
        "peak_bytes": torch.cuda.max_memory_allocated() if CUDA else 0,
        "graph_ms": graph * 1e3, "reselected": done[Decision.RESELECT] / max(1, sum(done)),
    }  # fmt: skip


def graph_seconds(decoder: GraphDecoder, lanes: int, blocks: int) -> float:
    """Seconds of the last step's graph, launched again; without CUDA of its plain launches."""
    bucket = decoder._bucket(lanes, blocks)
    if bucket.graph is None:
        return eager_seconds(lambda: decoder._run(bucket))
    replay, repeats = bucket.graph.replay, 10
    return eager_seconds(lambda: [replay() for _ in range(repeats)]) / repeats


def eager_seconds(work: Callable[[], object]) -> float:
    synchronise()
    begun = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - begun


def serve_transformers(model: Any, visual: int, batch: int, new: int) -> dict[str, Any]:
    """`generate` (sdpa, dynamic cache) on equal prompts of random embeddings."""
    length, weight = visual + TEXT, model.model.embed_tokens.weight
    embeds = torch.randn(batch, length, weight.shape[1], device=DEVICE, dtype=weight.dtype) * 0.02
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    token_times(model, embeds, 2, synchronise)  # warms up
    times = token_times(model, embeds, new, synchronise)
    per_step = (times[-1] - times[0]) / (len(times) - 1)
    return {
        "ttft_s": times[0], "ms_per_token": per_step * 1e3,
        "tokens_per_s": batch / per_step,
        "peak_bytes": torch.cuda.max_memory_allocated() if CUDA else 0,
    }  # fmt: skip
