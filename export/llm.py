"""Writes the LLM as a TensorRT-LLM checkpoint: config.json and one safetensors file per rank.

Tensors are streamed in pieces of at most 64 MiB, so a 72B model exports in well under 1 GiB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..bundle.llm_config import llm_config_json
from ..bundle.llm_layout import check_tp, kv_heads_of_rank, padded_vocab, rank_shapes
from ..bundle.paths import LLM_CONFIG, rank_file
from ..bundle.safetensors_file import CHUNK_BYTES, TensorPlan, write_safetensors
from ..bundle.writing import writing
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
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
    dims = checkpoint.llm
    check_tp(dims, tp)
    config.check_layers(dims.layers)
    with writing(directory):
        directory.mkdir()
        text = json.dumps(llm_config_json(checkpoint.llm, config, dtype, tp), indent=2)
        (directory / LLM_CONFIG).write_text(text + "\n", encoding="utf-8")
    return {
        name: write_safetensors(directory / name, _rank_plans(checkpoint, rank, tp, dtype.torch))
        for rank, name in enumerate(map(rank_file, range(tp)))
    }


def _rank_plans(checkpoint: Checkpoint, rank: int, tp: int, dtype: torch.dtype) -> list[TensorPlan]:
    shapes = rank_shapes(checkpoint.llm, tp)
    return [
        TensorPlan(name, shape, dtype, partial(_pieces, checkpoint, name, rank, tp, dtype))
        for name, shape in shapes.items()
    ]


def _pieces(
    checkpoint: Checkpoint, name: str, rank: int, tp: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The rank's part of a TensorRT-LLM tensor, in `dtype`, in pieces."""
    for piece in _source_pieces(checkpoint, name, rank, tp):
        yield checkpoint.converted(piece, dtype, name)


def _source_pieces(checkpoint: Checkpoint, name: str, rank: int, tp: int) -> Iterator[Tensor]:
    dims = checkpoint.llm
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
