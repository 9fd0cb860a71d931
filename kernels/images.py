"""Which kernels, with which constants, an engine or the native backend of a given model needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..core.dtype import Dtype
from .attention import (
    MERGE_WARPS,
    attention_constants,
    attention_kernel,
    merge_constants,
    merge_kernel,
)
from .attention import WARPS as ATTENTION_WARPS
from .common import pipeline_stages
from .context import WARPS as CONTEXT_WARPS
from .context import context_constants, context_kernel
from .fused import WARPS as FUSED_WARPS
from .fused import add_norm_constants, add_norm_kernel, swiglu_constants, swiglu_kernel
from .reorder import PROGRAMS, reorder_constants, reorder_kernel
from .reorder import WARPS as REORDER_WARPS
from .rotary import WARPS as ROTARY_WARPS
from .rotary import rotary_constants, rotary_kernel
from .score import WARPS as SCORE_WARPS
from .score import logits_constants, logits_kernel, scores_constants, scores_kernel
from .select import WARPS as SELECT_WARPS
from .select import select_constants, select_kernel
from .token_attention import token_attention_kernel
from .token_select import WARPS as TOKEN_SELECT_WARPS
from .token_select import token_select_constants, token_select_kernel
from .ttm import WARPS as TTM_WARPS
from .ttm import similarity_constants, similarity_kernel, survivors_constants, survivors_kernel

# Types of the kernels' parameters by name; T is the model's dtype, what is not here is an int32.
# "!" marks pointers that must be 16-byte aligned: wide loads are compiled in. Tables are not among
# them: one row of a pool's table may begin anywhere.
_MODEL = (
    "qkv",
    "out",
    "query",
    "pool",
    "residual",
    "delta",
    "weight",
    "total",
    "gate_up",
    "features",
)
_FLOATS = ("cos_sin", "partial", "maxima", "sums", "logits", "scores", "state_scores",
           "state_average")  # fmt: skip
_INTEGERS = (
    "lengths", "context_lengths", "prompt_lengths", "table", "keep_table", "ids", "state_record",
    "out_table", "out_lengths", "decisions", "frame_anchors", "offsets", "slots", "ranked",
    "out_slots", "swaps", "moved",
)  # fmt: skip
_TYPES = {
    **dict.fromkeys(_MODEL, "*T!"),
    **dict.fromkeys((*_FLOATS, "block_scores"), "*fp32!"),
    **dict.fromkeys(_INTEGERS, "*i32"),
    **dict.fromkeys(("state_visual", "state_keep"), "*u8!"),
    **dict.fromkeys(("scale", "threshold", "epsilon", "total_heads", "memory"), "fp32"),
    "similarities": "*fp32",
    **dict.fromkeys(("counters", "survivors"), "*i64"),
}


Grid = tuple[str | int, str | int, str | int]


@dataclass(frozen=True)
class KernelShape:
    """What the kernels depend on: one rank's heads, the dtype of activations and KV."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: Dtype
    ranks: int = 1


@dataclass(frozen=True)
class Parameter:
    """A parameter as a launcher passes it. type: Triton's, `*` for a pointer."""

    name: str
    type: str
    aligned: bool  # to 16 bytes

    @property
    def bytes(self) -> int:
        return 8 if self.type.startswith("*") or self.type == "i64" else 4


@dataclass(frozen=True)
class Variant:
    """One kernel with its constants. grid: what a launcher multiplies out.

    Names in the grid: `rows` of the batch, `context_rows`, packed `tokens`, `splits`; a `/n` behind
    one is a division that rounds up.
    """

    name: str
    kernel: Any  # triton.JITFunction
    constants: dict[str, int]
    warps: int
    grid: Grid
    stages: int = 3  # of software pipelining, for loops that triton pipelines

    def parameters(self, dtype: Dtype) -> list[Parameter]:
        found = []
        for name in self.kernel.arg_names:
            if name not in self.constants:
                type_ = _TYPES.get(name, "i32").replace("T", dtype.short)
                found.append(Parameter(name, type_.rstrip("!"), type_.endswith("!")))
        return found


def plugin_variants(shape: KernelShape, blocks: tuple[int, ...]) -> Iterator[Variant]:
    """What the plugin launches, for engines with any of `blocks` tokens per KV block.

    On one rank the second launch reads logits; on several, `scores` is summed over the ranks and
    the second launch reads the sum.
    """
    heads, kv_heads, dim = shape.heads, shape.kv_heads, shape.head_dim
    stages = pipeline_stages(shape.dtype.torch)
    constants = rotary_constants(heads, kv_heads, dim, 1, write=False)
    groups = -(-(heads + 2 * kv_heads) // constants["HEAD_TILE"])
    grid: Grid = ("tokens", groups, 1)
    yield Variant("rotary", rotary_kernel, constants, ROTARY_WARPS, grid)
    fused = shape.ranks == 1
    if not fused:
        constants = scores_constants(heads)
        grid = ("rows", f"row_tokens/{constants['TILE']}", 1)
        yield Variant("scores", scores_kernel, constants, SCORE_WARPS, grid)
    for block in blocks:
        constants = context_constants(block)
        grid = ("context_rows", 1, 1)
        yield Variant(f"context_b{block}", context_kernel, constants, CONTEXT_WARPS, grid)
        constants = logits_constants(heads, kv_heads, dim, block, shape.dtype.torch, rotate=True)
        grid = ("rows", kv_heads, "splits")
        yield Variant(f"logits_b{block}", logits_kernel, constants, SCORE_WARPS, grid, stages)
        constants = select_constants(heads, block, fused=fused)
        yield Variant(f"select_b{block}", select_kernel, constants, SELECT_WARPS, ("rows", 1, 1))
        size = shape.dtype.torch.itemsize
        constants = reorder_constants(kv_heads, dim, block, size)
        grid = (PROGRAMS, 1, 1)
        yield Variant(f"reorder_b{block}", reorder_kernel, constants, REORDER_WARPS, grid)


def native_variants(
    shape: KernelShape, block: int, hidden: int, intermediate: int
) -> Iterator[Variant]:
    """What the native backend launches beside these. It compiles at run time; tests and the full
    grid compile them ahead."""
    heads, kv_heads, dim = shape.heads, shape.kv_heads, shape.head_dim
    constants = rotary_constants(heads, kv_heads, dim, block, write=True)
    groups = -(-(heads + 2 * kv_heads) // constants["HEAD_TILE"])
    grid: Grid = ("tokens", groups, 1)
    yield Variant(f"rotary_write_b{block}", rotary_kernel, constants, ROTARY_WARPS, grid)
    dtype = shape.dtype.torch
    stages = pipeline_stages(dtype)
    for splits in (1, 8):
        constants = attention_constants(heads, kv_heads, dim, block, splits, dtype)
        grid, name = ("rows", kv_heads, splits), f"attention_s{splits}_b{block}"
        yield Variant(name, attention_kernel, constants, ATTENTION_WARPS, grid, stages)
        name = f"token_{name}"
        yield Variant(name, token_attention_kernel, constants, ATTENTION_WARPS, grid, stages)
    grid = (f"rows*{heads}", 1, 1)
    yield Variant("merge_s8", merge_kernel, merge_constants(dim, 8), MERGE_WARPS, grid)
    constants = logits_constants(heads, kv_heads, dim, block, dtype, rotate=False)
    grid = ("rows", kv_heads, "splits")
    yield Variant(f"logits_rotated_b{block}", logits_kernel, constants, SCORE_WARPS, grid, stages)
    constants = token_select_constants(heads, block, fused=True)
    name = f"token_select_b{block}"
    yield Variant(name, token_select_kernel, constants, TOKEN_SELECT_WARPS, ("rows", 1, 1))
    constants = add_norm_constants(hidden, add=True)
    yield Variant("add_norm", add_norm_kernel, constants, FUSED_WARPS, ("rows", 1, 1))
    constants = swiglu_constants(intermediate)
    grid = ("rows", f"width/{constants['TILE']}", 1)
    yield Variant("swiglu", swiglu_kernel, constants, FUSED_WARPS, grid)
    tokens, keep = 196, 58  # of a frame of LLaVA-OneVision, and at K = 0.7
    constants = similarity_constants(tokens, hidden)
    yield Variant("similarity", similarity_kernel, constants, TTM_WARPS, ("frames", tokens, 1))
    constants = survivors_constants(tokens, keep)
    yield Variant("survivors", survivors_kernel, constants, TTM_WARPS, ("frames", 1, 1))
