"""Moves K and V of tokens that changed places, in place, one launch a step.

What it does is core/importance.py's `reorder_pool` with the swaps that `select` listed. Every swap
is of two tokens that no other swap touches, so programs hold a few pairs between reading and
writing, need no copy of anything and do not wait for each other. Where no row selected anew, all
programs see that and end.

What a caller has to see to: that nothing reads or writes these layers of the pool meanwhile. It
runs behind `select` and before any layer that follows attends; beside the attention of the scoring
layer it must not run, since a set of tokens is only whole before and after the swaps. On one stream
that is the order of launches. Where another stream attends, an event has to stand between them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import key_slots
from .common import check_int32, padded
from .interpreter import INTERPRETED
from .score import ScoreWorkspace

WARPS = 8
# About two for every multiprocessor of the GPUs of today; the interpreter runs one after the other.
PROGRAMS = 3 if INTERPRETED else 256
TILE_BYTES = 16 << 10  # of one side of the pairs that a program holds
ROWS = 128


@triton.jit(do_not_specialize=["rows", "layer", "layers", "max_blocks"])
def reorder_kernel(
    pool, table, swaps, moved, rows, layer, layers, max_blocks,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK: tl.constexpr,
    TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Any number of programs. Swaps in layers `layer` <= i < `layers`.

    moved: int32 [rows], pairs of each row; swaps: int32 [rows, 2, M * B] of kernels/order.py. An
    item of work is a tile of a row's pairs in one head of K or V of one layer.
    """
    slabs = (layers - layer) * (2 * KV_HEADS)
    max_tokens = max_blocks * BLOCK
    d = tl.arange(0, DIM_PAD)
    for first in range(0, rows, ROWS):
        some = first + tl.arange(0, ROWS)
        items = tl.cdiv(tl.load(moved + some, mask=some < rows, other=0), TILE) * slabs
        ends = tl.cumsum(items, 0)
        for item in range(tl.program_id(0), tl.sum(items, 0), tl.num_programs(0)):
            row = first + tl.sum((ends <= item).to(tl.int32), 0)
            rest = item - tl.sum(tl.where(ends <= item, items, 0), 0)
            slab = rest % slabs
            head = slab % KV_HEADS
            plane = slab // KV_HEADS % 2
            here = layer + slab // (2 * KV_HEADS)
            i = rest // slabs * TILE + tl.arange(0, TILE)
            valid = i < tl.load(moved + row)
            line = swaps + row.to(tl.int64) * (2 * max_tokens) + max_tokens
            a = tl.load(line + i, mask=valid, other=0)
            b = tl.load(line + max_tokens // 2 + i, mask=valid, other=0)
            a = key_slots(
                table, row, plane, a // BLOCK, valid, max_blocks, here, head, a % BLOCK,
                KV_HEADS, BLOCK,
            )  # fmt: skip
            b = key_slots(
                table, row, plane, b // BLOCK, valid, max_blocks, here, head, b % BLOCK,
                KV_HEADS, BLOCK,
            )  # fmt: skip
            inside = valid[:, None] & (d < HEAD_DIM)[None, :]
            x = tl.load(pool + a[:, None] * HEAD_DIM + d[None, :], mask=inside)
            y = tl.load(pool + b[:, None] * HEAD_DIM + d[None, :], mask=inside)
            # Threads may hold copies of an element: all have read before one writes.
            tl.debug_barrier()
            tl.store(pool + a[:, None] * HEAD_DIM + d[None, :], y, mask=inside)
            tl.store(pool + b[:, None] * HEAD_DIM + d[None, :], x, mask=inside)


def reorder_constants(
    kv_heads: int, head_dim: int, tokens_per_block: int, element_bytes: int
) -> dict[str, int]:
    dims = padded(head_dim, 16)
    return {
        "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "DIM_PAD": dims, "BLOCK": tokens_per_block,
        "TILE": TILE_BYTES // (dims * element_bytes), "ROWS": ROWS,
    }  # fmt: skip


def reorder_pool(
    pool: Tensor, table: Tensor, workspace: ScoreWorkspace, *, first_layer: int
) -> None:
    """Moves K and V of the layers from `first_layer` on by what `select` left in the workspace.

    pool: [num_blocks, L, 2, Hkv, B, D] in fp32, fp16 or bf16; table: int32 [S, 2, M], of all
    blocks: not the compacted one.
    """
    check_int32(table=table, swaps=workspace.swaps, moved=workspace.moved)
    if pool.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"a pool in {pool.dtype} is not moved; expected fp32, fp16 or bf16")
    _, layers, _, kv_heads, tokens_per_block, head_dim = pool.shape
    rows, _, max_blocks = table.shape
    constants = reorder_constants(kv_heads, head_dim, tokens_per_block, pool.element_size())
    reorder_kernel[(PROGRAMS,)](
        pool, table, workspace.swaps, workspace.moved,
        rows, first_layer, layers, max_blocks, **constants, num_warps=WARPS,
    )  # fmt: skip


def listed_order(workspace: ScoreWorkspace, row: int) -> Tensor:
    """int64 [M * B]: entry t is the position whose token moved to t in the last step of a row, as
    `core.importance.swaps` says it. Reads back how many did: for figures and tests."""
    tokens = workspace.swaps.shape[2]
    order = torch.arange(tokens, device=workspace.swaps.device)
    pairs = int(workspace.moved[row])
    entering, leaving = (workspace.swaps[row, 1, at : at + pairs].long() for at in (0, tokens // 2))
    order[entering], order[leaving] = leaving, entering
    return order
