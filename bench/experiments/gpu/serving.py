"""A whole model with random weights: time to first token, decoding, memory; and transformers'."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ....arch.qwen2 import LayerWeights, Weights
from ....arch.siglip import VisionModel, fused_attention
from ....arch.spec import DecoderSpec, PixelScale, TowerSpec, VisionSpec
from ....compress.base import compressor_of
from ....core.config import DyCokeConfig
from ....core.decisions import Decision
from ....cost.dims import LlmDims, ModelDims
from ....runtime.blocks import blocks_for
from ....runtime.native.cuda import cuda_runner
from ....runtime.native.graphs import GraphDecoder
from ....runtime.request import Event, Request
from ....runtime.scheduler import EngineLimits, Scheduler
from ....runtime.vision_torch import TorchVision
from .rates import CUDA, DEVICE, seconds, synchronise

TEXT, BEFORE = 64, 14  # tokens of text in a prompt; those before the video


def random_llm(dims: LlmDims, dtype: torch.dtype) -> tuple[DecoderSpec, Weights]:
    def draw(*shape: int, scale: float = 0.02) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=dtype) * scale

    def ones(count: int) -> torch.Tensor:
        return torch.ones(count, device=DEVICE, dtype=dtype)

    rows = (dims.heads + 2 * dims.kv_heads) * dims.head_dim
    layers = tuple(
        LayerWeights(
            input_norm=ones(dims.hidden), qkv=draw(rows, dims.hidden), qkv_bias=draw(rows),
            dense=draw(dims.hidden, dims.heads * dims.head_dim), post_norm=ones(dims.hidden),
            gate_up=draw(2 * dims.intermediate, dims.hidden),
            down=draw(dims.hidden, dims.intermediate),
        )
        for _ in range(dims.layers)
    )  # fmt: skip
    embedding = draw(dims.vocab, dims.hidden)
    head = embedding if dims.tied_embeddings else draw(dims.vocab, dims.hidden)
    spec = DecoderSpec(**asdict(dims), rope_theta=1e6, rms_norm_eps=1e-6, max_positions=32_768)
    return spec, Weights(embedding, layers, ones(dims.hidden), head)


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


def graph_seconds(decoder: GraphDecoder, lanes: int, blocks: int, repeats: int = 10) -> float:
    """Seconds of the last step's graph, launched again; without CUDA of its plain launches."""
    bucket = decoder._bucket(lanes, blocks)
    if bucket.graph is None:
        return eager_seconds(lambda: decoder._run(bucket))
    replay = bucket.graph.replay
    return eager_seconds(lambda: [replay() for _ in range(repeats)]) / repeats


def eager_seconds(work: Callable[[], object]) -> float:
    synchronise()
    begun = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - begun


def build_transformers(dims: LlmDims, llm: DecoderSpec, weights: Weights) -> Any:
    """transformers' Qwen2 on the same memory: its parameters are views of the native weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    rotary: dict[str, Any] = {"rope_theta": llm.rope_theta}  # transformers 5 moves it
    config = Qwen2Config(
        **rotary, vocab_size=dims.vocab, hidden_size=dims.hidden,
        intermediate_size=dims.intermediate, num_hidden_layers=dims.layers,
        num_attention_heads=dims.heads, num_key_value_heads=dims.kv_heads,
        max_position_embeddings=llm.max_positions, tie_word_embeddings=dims.tied_embeddings,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    # On no device to begin with: real parameters would double the memory before they go.
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    tensors = {
        "model.embed_tokens.weight": weights.embedding, "lm_head.weight": weights.lm_head,
        "model.norm.weight": weights.final_norm,
    }  # fmt: skip
    q, kv = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    for i, layer in enumerate(weights.layers):
        name = f"model.layers.{i}."
        for part, x in (("weight", layer.qkv), ("bias", layer.qkv_bias)):
            for which, rows in zip("qkv", torch.split(x, [q, kv, kv]), strict=True):
                tensors[f"{name}self_attn.{which}_proj.{part}"] = rows
        gate, up = layer.gate_up.chunk(2)
        tensors |= {
            f"{name}self_attn.o_proj.weight": layer.dense, f"{name}mlp.gate_proj.weight": gate,
            f"{name}mlp.up_proj.weight": up, f"{name}mlp.down_proj.weight": layer.down,
            f"{name}input_layernorm.weight": layer.input_norm,
            f"{name}post_attention_layernorm.weight": layer.post_norm,
        }  # fmt: skip
    model.load_state_dict(tensors, strict=False, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(DEVICE)
    model.train(False)
    return model


@torch.no_grad()
def serve_transformers(model: Any, visual: int, batch: int, new: int) -> dict[str, Any]:
    """`generate` (sdpa, dynamic cache) on equal prompts of random embeddings."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    times: list[float] = []

    class Clock(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            synchronise()
            times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    length, weight = visual + TEXT, model.model.embed_tokens.weight
    embeds = torch.randn(batch, length, weight.shape[1], device=DEVICE, dtype=weight.dtype) * 0.02
    mask = torch.ones(batch, length, dtype=torch.long, device=DEVICE)
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for count in (2, new):  # the first one warms up
        times.clear()
        synchronise()
        begun = time.perf_counter()
        model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=count, min_new_tokens=count,
            do_sample=False, pad_token_id=0, stopping_criteria=StoppingCriteriaList([Clock()]),
        )  # fmt: skip
    per_step = (times[-1] - times[0]) / (len(times) - 1)
    return {
        "ttft_s": times[0] - begun, "ms_per_token": per_step * 1e3,
        "tokens_per_s": batch / per_step,
        "peak_bytes": torch.cuda.max_memory_allocated() if CUDA else 0,
    }  # fmt: skip
