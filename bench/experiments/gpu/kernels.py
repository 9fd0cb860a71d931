"""Each kernel alone, next to the least time its memory traffic allows at the measured read rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ....core.decisions import GateMode
from ....core.pool import PoolLayout, encode_table
from ....core.reselection import block_keep_table, token_keep_table
from ....core.state import ReselectionState, write_context
from ....cost.dims import LlmDims
from ....kernels.attention import AttentionWorkspace, paged_attention, splits_for
from ....kernels.fused import add_norm, swiglu
from ....kernels.reorder import reorder_pool
from ....kernels.rotary import rotary, rotary_table
from ....kernels.score import MOST_SPLITS, ScoreWorkspace, reduce_scores, score_logits
from ....kernels.select import SelectionOutput, select
from ....kernels.token_attention import token_attention
from ....kernels.token_select import TokenSelectionOutput, select_tokens
from .aims import ATTENTION, SELECT_PATH
from .rates import CUDA, DEVICE, seconds


def time_kernels(
    dims: LlmDims, context: int, batch: int, block: int, read_rate: float, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """One row per kernel: microseconds, floor, ratio.

    Caches are cold: a series of launches walks through the KV of all layers. In order of importance
    the scores are the same in each launch, so that nothing moves after the first one. "score alone"
    and the row after it are the two halves of the second launch, as tensor parallelism needs them:
    they show what fusing saves, or costs.
    """
    layers = dims.layers
    width = -(-context // block)
    layout = PoolLayout(batch * width, layers, dims.kv_heads, block, dims.head_dim)
    pool = torch.randn(layout.shape, device=DEVICE, dtype=dtype)
    blocks = torch.randperm(layout.num_blocks, device=DEVICE).view(batch, width)
    table = encode_table(blocks, layers).contiguous()
    lengths = torch.full((batch,), context, dtype=torch.int32, device=DEVICE)
    prompts = lengths - 8
    total, dim = dims.heads + 2 * dims.kv_heads, dims.head_dim
    qkv = torch.randn(batch, total, dim, device=DEVICE, dtype=dtype)
    rotated, out = torch.empty_like(qkv), qkv.new_empty(batch, dims.heads, dim)
    cos_sin = rotary_table(context + 1, dim, 1e6, DEVICE)
    processors = torch.cuda.get_device_properties(0).multi_processor_count if CUDA else 2
    splits = splits_for(batch * dims.kv_heads, processors, MOST_SPLITS)
    attention = AttentionWorkspace(batch, dims.heads, dim, splits, DEVICE)
    scores = ScoreWorkspace.allocate(batch, dims.heads, width, block, splits, DEVICE)
    selection = SelectionOutput.allocate(batch, width, DEVICE)
    shares = torch.zeros(batch, width * block, device=DEVICE)
    state = ReselectionState.allocate(layout.num_blocks, block, DEVICE)
    visual = torch.zeros(batch, width * block, dtype=torch.bool, device=DEVICE)
    visual[:, 14 : context - 60] = True
    write_context(state, blocks, torch.zeros_like(prompts), prompts, visual)
    keep = block_keep_table(0.7, width).to(DEVICE)
    by_token = ReselectionState.allocate(layout.num_blocks, block, DEVICE, "token")
    write_context(by_token, blocks, torch.zeros_like(prompts), prompts, visual)
    keep_tokens = token_keep_table(0.7, width * block).to(DEVICE)
    tokens = TokenSelectionOutput.allocate(batch, width, block, DEVICE)
    slots = blocks.repeat_interleave(block, 1) * block
    slots = (slots + torch.arange(width * block, device=DEVICE) % block).int()  # of every token
    by_importance = ReselectionState.allocate(layout.num_blocks, block, DEVICE)
    write_context(by_importance, blocks, torch.zeros_like(prompts), prompts, visual)
    resting, swapping = (
        ScoreWorkspace.allocate(batch, dims.heads, width, block, splits, DEVICE) for _ in range(2)
    )
    resting.moved.zero_()
    pairs = context // 20  # a tenth of the tokens changes places
    swapping.moved.fill_(pairs)
    places = torch.arange(pairs, dtype=torch.int32, device=DEVICE)
    swapping.swaps[:, 1, :pairs] = places
    swapping.swaps[:, 1, width * block // 2 :][:, :pairs] = places + context // 2
    scoring_layer = min(2, layers - 1)
    hidden = torch.randn(batch, dims.hidden, device=DEVICE, dtype=dtype)
    norm, normed, summed = hidden[0].clone(), torch.empty_like(hidden), torch.empty_like(hidden)
    gate_up = torch.randn(batch, 2 * dims.intermediate, device=DEVICE, dtype=dtype)
    inner = gate_up.new_empty(batch, dims.intermediate)

    item = dtype.itemsize
    kv = batch * context * dims.kv_heads * dim * item  # K or V of one layer
    logits = batch * dims.heads * context * 4
    row = batch * total * dim * item

    def first(layer: int) -> None:
        score_logits(rotated, pool, table, lengths, scores, layer=layer)

    def second(given: Tensor | None = None) -> None:
        select(
            state, table, lengths, prompts, scores, keep, selection, layers=layers,
            mode=GateMode.ALWAYS, padding=False, scores=given,
        )  # fmt: skip

    def select_path(layer: int) -> None:
        first(layer)
        second()

    def in_order(_: int) -> None:
        select(
            by_importance, table, lengths, prompts, scores, keep, selection, layers=layers,
            mode=GateMode.ALWAYS, padding=False, memory=0.5, order="importance",
        )  # fmt: skip

    launches: dict[str, tuple[Callable[[int], None], float]] = {
        ATTENTION: (
            lambda layer: paged_attention(
                rotated, pool, table, lengths, out, attention, heads=dims.heads, layer=layer
            ),
            2 * kv,
        ),
        "score: logits and statistics": (first, kv + logits),
        "score, gate, select, compact": (
            lambda _: second(),
            logits + 9 * batch * context + 16 * batch * width,
        ),
        SELECT_PATH: (select_path, kv + 2 * logits + 9 * batch * context + 16 * batch * width),
        "attention over a list of all": (
            lambda layer: token_attention(
                rotated, pool, slots, lengths, out, attention, heads=dims.heads, layer=layer
            ),
            2 * kv + 4 * batch * context * dims.kv_heads,
        ),
        "score, gate, select and list tokens": (
            lambda _: select_tokens(
                by_token, table, lengths, prompts, scores, keep_tokens, tokens, layers=layers,
                mode=GateMode.ALWAYS,
            ),
            logits + 14 * batch * context,
        ),
        "score, gate, select, compact, in order of importance": (
            in_order,
            logits + 25 * batch * context + 16 * batch * width,
        ),
        "move K and V of a tenth of the tokens": (
            lambda _: reorder_pool(pool, table, swapping, first_layer=scoring_layer),
            4 * kv * (layers - scoring_layer) * (2 * pairs / context),
        ),
        "move nothing": (
            lambda _: reorder_pool(pool, table, resting, first_layer=scoring_layer),
            4 * batch,
        ),
        "score alone": (
            lambda _: reduce_scores(scores, lengths, shares),
            logits + 4 * batch * width * block,
        ),
        "gate, select, compact": (
            lambda _: second(shares),
            13 * batch * context + 16 * batch * width,
        ),
        "rotary and KV write": (
            lambda layer: rotary(
                qkv, rotated, cos_sin, lengths, prompts, heads=dims.heads,
                kv_heads=dims.kv_heads, pool=pool, table=table, layer=layer,
            ),
            2 * row,
        ),
        "residual and RMSNorm": (
            lambda _: add_norm(hidden, hidden, norm, summed, normed, 1e-6),
            4 * batch * dims.hidden * item,
        ),
        "SwiGLU": (lambda _: swiglu(gate_up, inner), 3 * batch * dims.intermediate * item),
    }  # fmt: skip
    rotated.copy_(qkv)
    for name, (launch, moved) in launches.items():

        def series(launch: Callable[[int], None] = launch) -> None:
            for layer in range(layers):
                launch(layer)

        took, floor = seconds(series, inner=layers), moved / read_rate
        yield {
            "kernel": name, "batch": batch, "context": context, "block": block,
            "us": took * 1e6, "floor_us": floor * 1e6, "times_floor": took / floor,
        }  # fmt: skip
