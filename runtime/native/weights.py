"""Weights from a TensorRT-LLM checkpoint: what the native backend runs is the export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import DyCokeError

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LlmConfig:
    """The part of a TensorRT-LLM checkpoint's config.json that a Qwen2 forward pass needs."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_epsilon: float
    rotary_base: float
    max_positions: int
    dtype: torch.dtype

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> LlmConfig:
        """Raises DyCokeError for a field that is missing or names something not supported."""
        try:
            if config["position_embedding_type"] != "rope_gpt_neox" or config.get("rotary_scaling"):
                raise DyCokeError(
                    "the native backend rotates as rope_gpt_neox without scaling, the checkpoint "
                    f"says {config['position_embedding_type']!r}, {config.get('rotary_scaling')!r}"
                )
            return cls(
                layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                heads=config["num_attention_heads"],
                kv_heads=config["num_key_value_heads"],
                head_dim=config["head_size"],
                vocab=config["vocab_size"],
                norm_epsilon=config["norm_epsilon"],
                rotary_base=config["rotary_base"],
                max_positions=config["max_position_embeddings"],
                dtype=_DTYPES[config["dtype"]],
            )
        except KeyError as error:
            raise DyCokeError(f"llm/config.json: {error} is missing or not supported") from None


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. qkv: rows q | k | v; gate_up: rows gate | up, fused for one product."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(heads + 2 kv heads) * D, hidden]
    qkv_bias: Tensor  # [(heads + 2 kv heads) * D]
    dense: Tensor  # [hidden, heads * D]
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]
    down: Tensor  # [hidden, intermediate]


@dataclass(frozen=True)
class Weights:
    """All weights of one rank."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden]
    lm_head: Tensor  # [vocab, hidden]


def load_weights(
    directory: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[LlmConfig, Weights]:
    """Reads config.json and rank0.safetensors of a TP=1 checkpoint.

    dtype: what to compute in; default the checkpoint's. Raises DyCokeError for a missing file or
    tensor, or a checkpoint of several ranks.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / "config.json"
    try:
        raw = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DyCokeError(f"{path}: not a TensorRT-LLM checkpoint ({error})") from None
    world = raw.get("mapping", {}).get("world_size", 1)
    if world != 1:
        raise DyCokeError(
            f"{directory}: a checkpoint of {world} ranks; the native backend needs 1: "
            "export with --tp 1"
        )
    config = LlmConfig.from_json(raw)
    file = directory / "rank0.safetensors"
    try:
        with safe_open(file, "pt", device=str(device)) as tensors:
            return config, collect(
                config, lambda n: tensors.get_tensor(n).to(dtype or config.dtype)
            )
    except (OSError, SafetensorError) as error:
        raise DyCokeError(f"{file}: not readable ({error}); export again") from None


def collect(config: LlmConfig, get: Any) -> Weights:
    """Arranges tensors by TensorRT-LLM name (`get(name) -> Tensor`) into `Weights`."""

    def layer(i: int) -> LayerWeights:
        prefix = f"transformer.layers.{i}"
        return LayerWeights(
            input_norm=get(f"{prefix}.input_layernorm.weight"),
            qkv=get(f"{prefix}.attention.qkv.weight"),
            qkv_bias=get(f"{prefix}.attention.qkv.bias"),
            dense=get(f"{prefix}.attention.dense.weight"),
            post_norm=get(f"{prefix}.post_layernorm.weight"),
            # TensorRT-LLM's fc is the gate projection, its gate the up projection.
            gate_up=torch.cat([get(f"{prefix}.mlp.fc.weight"), get(f"{prefix}.mlp.gate.weight")]),
            down=get(f"{prefix}.mlp.proj.weight"),
        )

    return Weights(
        embedding=get("transformer.vocab_embedding.weight"),
        layers=tuple(layer(i) for i in range(config.layers)),
        final_norm=get("transformer.ln_f.weight"),
        lm_head=get("lm_head.weight"),
    )
