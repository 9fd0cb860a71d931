"""Qwen2 of any shape with random weights: for the native backend, and on the same memory for
transformers, whose `generate` is timed token by token."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ...arch.qwen2 import LayerWeights, Weights
from ...arch.spec import DecoderSpec
from ...cost.dims import LlmDims


def random_llm(
    dims: LlmDims, dtype: torch.dtype, device: str = "cpu"
) -> tuple[DecoderSpec, Weights]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype) * 0.02

    def ones(count: int) -> Tensor:
        return torch.ones(count, device=device, dtype=dtype)

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


def transformers_of(llm: DecoderSpec, weights: Weights) -> Any:
    """transformers' Qwen2 (sdpa) on the same memory: its parameters are views of the weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    rotary: dict[str, Any] = {"rope_theta": llm.rope_theta}  # transformers 5 moves it
    config = Qwen2Config(
        **rotary, vocab_size=llm.vocab, hidden_size=llm.hidden,
        intermediate_size=llm.intermediate, num_hidden_layers=llm.layers,
        num_attention_heads=llm.heads, num_key_value_heads=llm.kv_heads,
        max_position_embeddings=llm.max_positions, tie_word_embeddings=llm.tied_embeddings,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    # On no device to begin with: real parameters would double the memory before they go.
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    tensors = {
        "model.embed_tokens.weight": weights.embedding, "lm_head.weight": weights.lm_head,
        "model.norm.weight": weights.final_norm,
    }  # fmt: skip
    q, kv = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
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
    rotary_kind = type(model.model.rotary_emb)
    model.model.rotary_emb = rotary_kind(config).to(weights.embedding.device)
    model.train(False)
    return model


@torch.no_grad()
def token_times(
    model: Any, embeds: Tensor, count: int, synchronise: Callable[[], None] = lambda: None
) -> list[float]:
    """Seconds from the call of `generate` to each of `count` tokens. embeds: [batch, T, hidden]."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    times: list[float] = []

    class Clock(StoppingCriteria):
        def __call__(self, input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
            synchronise()
            times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    synchronise()
    begun = time.perf_counter()
    model.generate(
        inputs_embeds=embeds, attention_mask=mask, max_new_tokens=count, min_new_tokens=count,
        do_sample=False, pad_token_id=0, stopping_criteria=StoppingCriteriaList([Clock()]),
    )  # fmt: skip
    return [at - begun for at in times]
