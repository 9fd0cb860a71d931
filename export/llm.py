"""Writes the LLM as a TensorRT-LLM checkpoint: config.json and one safetensors file per rank.

Tensors are streamed in pieces of at most 64 MiB, so a 72B model exports in well under 1 GiB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arch.spec import DecoderSpec
from ..bundle.llm_layout import check_tp, kv_heads_of_rank, padded_vocab, rank_shapes
from ..bundle.paths import LLM_CONFIG, rank_weights
from ..bundle.safetensors_file import CHUNK_BYTES, TensorPlan, write_safetensors
from ..bundle.writing import writing
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from .checkpoint import Checkpoint

_NORMS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_layernorm.weight": "post_attention_layernorm.weight",
}
_ROW_SPLIT = {"mlp.fc.weight": "mlp.gate_proj.weight", "mlp.gate.weight": "mlp.up_proj.weight"}
_COLUMN_SPLIT = {
    "attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.proj.weight": "mlp.down_proj.weight",
}


def export_llm(
    checkpoint: Checkpoint, directory: Path, config: DyCokeConfig, dtype: Dtype, tp: int = 1
) -> dict[str, str]:
    """Writes the new directory `directory`; returns the SHA-256 of each rank's file by its name.

    Raises DyCokeError for an impossible tp (naming the allowed ones), a layer L that leaves nothing
    to prune, and weights that fp16 cannot hold.
    """
    dims = checkpoint.llm.dims
    check_tp(dims, tp)
    config.check_layers(dims.layers)
    with writing(directory):
        directory.mkdir()
        text = json.dumps(trtllm_config(checkpoint.llm, config, dtype, tp), indent=2)
        (directory / LLM_CONFIG).write_text(text + "\n", encoding="utf-8")
    return {
        name: write_safetensors(directory / name, _rank_plans(checkpoint, rank, tp, dtype.torch))
        for rank, name in enumerate(map(rank_weights, range(tp)))
    }


def trtllm_config(llm: DecoderSpec, config: DyCokeConfig, dtype: Dtype, tp: int) -> dict[str, Any]:
    """TensorRT-LLM's fields, and ours: `dycoke`, `visual_token_base`, `eos_ids`, `pad_id`.

    vocab_size is the number of embedding rows; ids from there on are visual tokens. lm_head is
    padded to a multiple of tp beyond it: logits of those rows mean nothing.
    """
    dims = llm.dims
    return {
        "architecture": "Qwen2ForCausalLM",
        "dtype": dtype,
        "logits_dtype": Dtype.FP32,
        "num_hidden_layers": dims.layers,
        "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads,
        "head_size": dims.head_dim,
        "hidden_size": dims.hidden,
        "intermediate_size": dims.intermediate,
        "vocab_size": dims.vocab,
        "norm_epsilon": llm.rms_norm_eps,
        "hidden_act": "silu",
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": llm.max_positions,
        "rotary_base": llm.rope_theta,
        "rotary_scaling": None,
        "attn_bias": True,
        "mlp_bias": False,
        "qwen_type": "qwen2",
        "tie_word_embeddings": dims.tied_embeddings,
        "seq_length": llm.max_positions,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "disable_weight_only_quant_plugin": False,
        "use_logn_attn": False,
        "mapping": {"world_size": tp, "tp_size": tp, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "dycoke": config.to_dict(),
        "visual_token_base": dims.vocab,
        "eos_ids": list(llm.eos_ids),
        "pad_id": llm.pad_id,
    }


def _rank_plans(checkpoint: Checkpoint, rank: int, tp: int, dtype: torch.dtype) -> list[TensorPlan]:
    shapes = rank_shapes(checkpoint.llm.dims, tp)
    return [
        TensorPlan(name, shape, dtype, partial(_pieces, checkpoint, name, rank, tp, dtype))
        for name, shape in shapes.items()
    ]


def _pieces(
    checkpoint: Checkpoint, name: str, rank: int, tp: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The rank's part of a TensorRT-LLM tensor, in `dtype`, in pieces."""
    for piece in _source_pieces(checkpoint, name, rank, tp):
        converted = piece.to(dtype)
        if not bool(converted.isfinite().all()):
            raise DyCokeError(
                f"{checkpoint.directory}: {name} is not finite in {dtype}; export with bf16 or "
                "fp32, or check the checkpoint"
            )
        yield converted


def _source_pieces(checkpoint: Checkpoint, name: str, rank: int, tp: int) -> Iterator[Tensor]:
    dims = checkpoint.llm.dims
    if name == "lm_head.weight":
        rows = padded_vocab(dims.vocab, tp) // tp
        start, stop = rank * rows, (rank + 1) * rows
        yield from checkpoint.chunks("llm.lm_head.weight", start, min(stop, dims.vocab))
        padding = stop - max(start, dims.vocab)
        if padding > 0:
            yield torch.zeros(padding, dims.hidden, dtype=checkpoint.dtype)
        return
    if name == "transformer.vocab_embedding.weight":
        yield from checkpoint.chunks("llm.embed_tokens.weight", 0, dims.vocab)
        return
    if name == "transformer.ln_f.weight":
        yield checkpoint.tensor("llm.norm.weight")
        return
    index, part = name.removeprefix("transformer.layers.").split(".", 1)
    layer = f"llm.layers.{index}."
    if part in _NORMS:
        yield checkpoint.tensor(layer + _NORMS[part])
    elif part in _ROW_SPLIT:
        rows = dims.intermediate // tp
        yield from checkpoint.chunks(layer + _ROW_SPLIT[part], rank * rows, (rank + 1) * rows)
    elif part in _COLUMN_SPLIT:
        source = layer + _COLUMN_SPLIT[part]
        columns = checkpoint.shape_of(source)[1] // tp
        for chunk in checkpoint.chunks(source, 0, dims.hidden, CHUNK_BYTES):
            yield chunk[:, rank * columns : (rank + 1) * columns]
    else:
        kind = part.rsplit(".", 1)[1]  # weight or bias of q, k and v: rows q | k | v
        share = dims.heads // tp
        kv = kv_heads_of_rank(dims, rank, tp)
        for letter, heads in (("q", range(rank * share, (rank + 1) * share)), ("k", kv), ("v", kv)):
            source = f"{layer}self_attn.{letter}_proj.{kind}"
            start, stop = heads.start * dims.head_dim, heads.stop * dims.head_dim
            yield from checkpoint.chunks(source, start, stop)
