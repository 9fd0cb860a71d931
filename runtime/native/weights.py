"""Weights from a TensorRT-LLM checkpoint: what the native backend runs is the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...arch.qwen2 import LayerWeights, Weights
from ...arch.spec import DecoderSpec
from ...bundle.llm_reader import read_llm
from ...core.errors import DyCokeError


def load_weights(
    directory: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[DecoderSpec, Weights]:
    """Reads a TensorRT-LLM checkpoint of one rank.

    dtype: what to compute in; default the checkpoint's. Raises DyCokeError for what `read_llm`
    refuses, and for a checkpoint of several ranks.
    """
    checkpoint = read_llm(directory)
    if checkpoint.tp != 1:
        raise DyCokeError(
            f"{directory}: a checkpoint of {checkpoint.tp} ranks; the native backend needs 1: "
            "export with --tp 1"
        )
    llm, kind = checkpoint.llm, dtype or checkpoint.dtype.torch
    return llm, collect(llm, lambda name: checkpoint.tensor(name).to(device, kind))


def collect(llm: DecoderSpec, get: Callable[[str], Tensor]) -> Weights:
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
        layers=tuple(layer(i) for i in range(llm.layers)),
        final_norm=get("transformer.ln_f.weight"),
        lm_head=get("lm_head.weight"),
    )
