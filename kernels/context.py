"""What a prompt chunk leaves behind for decoding: marks of visual tokens and a sequence's record.

The same as core/state.py's `write_context`. Runs once per step with context rows, not per layer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.state import ReselectionState
from .common import check_int32, physical_block

WARPS = 4
NONE = tl.constexpr(0x7FFFFFFF)


@triton.jit(do_not_specialize=["layers", "capacity", "max_blocks", "visual_base"])
def context_kernel(
    ids, table, lengths, context_lengths, state_visual, state_record,
    layers, capacity, max_blocks, visual_base, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (context row): its chunk's marks, then the record at the block of its last token.

    Every token sets or clears its mark, so marks of a block's former owner do not survive. A chunk
    whose predecessor is not on record leaves its sequence unknown (prompt length 0).
    """
    row = tl.program_id(0)
    length = tl.load(lengths + row)
    count = tl.load(context_lengths + row)
    past = length - count
    start = 0  # of this row in the packed tokens
    for other in range(0, row):
        start += tl.load(context_lengths + other)
    keys = table + 2 * row * max_blocks

    first = NONE
    end = 0
    for offset in range(0, count, TILE):
        j = offset + tl.arange(0, TILE)
        valid = j < count
        visual = (tl.load(ids + start + j, mask=valid, other=0) >= visual_base) & valid
        position = past + j
        block = physical_block(tl.load(keys + position // BLOCK, mask=valid, other=0), layers)
        place = block.to(tl.int64) * BLOCK + position % BLOCK
        tl.store(state_visual + place, visual.to(tl.uint8), mask=valid & (block < capacity))
        first = tl.minimum(first, tl.min(tl.where(visual, position, NONE), 0))
        end = tl.maximum(end, tl.max(tl.where(visual, position + 1, 0), 0))

    before = physical_block(tl.load(keys + tl.maximum(past - 1, 0) // BLOCK), layers)
    earlier = (past > 0) & (before < capacity)
    record = state_record + before.to(tl.int64) * 4
    known = (past == 0) | (tl.load(record, mask=earlier, other=-1) == past)
    old_begin = tl.load(record + 1, mask=earlier, other=0)
    old_end = tl.load(record + 2, mask=earlier, other=0)
    had = old_end > old_begin
    begin = tl.where(had, old_begin, tl.where(end > 0, first, 0))
    end = tl.where(end > 0, end, tl.where(had, old_end, 0))

    here = physical_block(tl.load(keys + tl.maximum(length - 1, 0) // BLOCK), layers)
    record = state_record + here.to(tl.int64) * 4
    owned = (here < capacity) & (count > 0)
    # All reads of the predecessor's record, which may be this one, come before the writes.
    tl.debug_barrier()
    tl.store(record, tl.where(known, length, 0), mask=owned)
    tl.store(record + 1, begin, mask=owned)
    tl.store(record + 2, end, mask=owned)
    tl.store(record + 3, 0, mask=owned)


def context_constants(tokens_per_block: int) -> dict[str, int]:
    return {"BLOCK": tokens_per_block, "TILE": 256}


def write_context(
    state: ReselectionState,
    ids: Tensor,
    table: Tensor,
    lengths: Tensor,
    context_lengths: Tensor,
    *,
    context_rows: int,
    layers: int,
    visual_base: int,
) -> None:
    """Records the prompt chunks of the first `context_rows` rows, in place.

    ids: int32 [tokens], packed, context rows first; table: int32 [S, 2, M]; lengths: int32 [S],
    prompt tokens written after this chunk; context_lengths: int32 [S], tokens of this chunk.
    visual_base: ids from here on are visual.
    """
    check_int32(ids=ids, table=table, lengths=lengths, context_lengths=context_lengths)
    if context_rows == 0:
        return
    context_kernel[(context_rows,)](
        ids, table, lengths, context_lengths, state.visual.view(torch.uint8), state.record,
        layers, state.num_blocks, table.shape[2], visual_base,
        **context_constants(state.tokens_per_block), num_warps=WARPS,
    )  # fmt: skip
