"""Names, shapes and splits of a TensorRT-LLM Qwen2 checkpoint.

Matrices are [out, in]. Column-parallel ones (qkv, fc, gate, lm_head) are split on rows over the
ranks, row-parallel ones (dense, proj) on columns; embedding and norms are whole on every rank.
`mlp.fc` is Qwen2's gate_proj and `mlp.gate` its up_proj. With more ranks than key-value heads, as
many ranks as there are to a head hold a copy of it, as in TensorRT-LLM.
"""

from __future__ import annotations

from ..core.errors import DyCokeError
from ..cost.dims import LlmDims

TP_SIZES = (1, 2, 4, 8)


def allowed_tp(dims: LlmDims) -> list[int]:
    """Tensor-parallel sizes that divide query heads and FFN, and divide or copy KV heads."""
    return [
        tp
        for tp in TP_SIZES
        if dims.heads % tp == dims.intermediate % tp == 0
        and (dims.kv_heads % tp == 0 or tp % dims.kv_heads == 0)
    ]


def kv_heads_of_rank(dims: LlmDims, rank: int, tp: int) -> range:
    """The key-value heads that a rank holds: its share, or the one head that it has a copy of."""
    first = rank * dims.kv_heads // tp
    return range(first, first + dims.of_rank(tp).kv_heads)


def check_tp(dims: LlmDims, tp: int) -> None:
    """Raises DyCokeError naming the allowed sizes."""
    if tp not in (allowed := allowed_tp(dims)):
        raise DyCokeError(
            f"tp={tp} is impossible for {dims.heads} query heads, {dims.kv_heads} key-value heads "
            f"and an FFN of {dims.intermediate}; allowed: {', '.join(map(str, allowed))}"
        )


def padded_vocab(vocab: int, tp: int) -> int:
    """Rows of lm_head over all ranks: the vocabulary, padded with zero rows to a multiple of tp."""
    return -(-vocab // tp) * tp


def rank_shapes(dims: LlmDims, tp: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in one rank's file, in file order; equal for all ranks."""
    own = dims.of_rank(tp)
    d, m = own.hidden, own.intermediate
    q, kv = own.heads * own.head_dim, own.kv_heads * own.head_dim
    shapes: dict[str, tuple[int, ...]] = {"transformer.vocab_embedding.weight": (dims.vocab, d)}
    for i in range(dims.layers):
        layer = f"transformer.layers.{i}."
        shapes[f"{layer}input_layernorm.weight"] = (d,)
        shapes[f"{layer}attention.qkv.weight"] = (q + 2 * kv, d)
        shapes[f"{layer}attention.qkv.bias"] = (q + 2 * kv,)
        shapes[f"{layer}attention.dense.weight"] = (d, q)
        shapes[f"{layer}post_layernorm.weight"] = (d,)
        shapes[f"{layer}mlp.fc.weight"] = (m, d)
        shapes[f"{layer}mlp.gate.weight"] = (m, d)
        shapes[f"{layer}mlp.proj.weight"] = (d, m)
    shapes["transformer.ln_f.weight"] = (d,)
    shapes["lm_head.weight"] = (padded_vocab(dims.vocab, tp) // tp, d)
    return shapes
