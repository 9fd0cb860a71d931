"""DycokeScore, DycokeSelect and DycokeRope of a recorded network by the Triton kernels themselves.

In the interpreter: import this with TRITON_INTERPRET=1. What C++ would do around the kernels is
said here again; library_plugins.py runs the C++ instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from dycoke_trt.core.config import Order
from dycoke_trt.core.decisions import GateMode
from dycoke_trt.core.state import ReselectionState
from dycoke_trt.engines.plugin_nodes import (
    ROPE,
    ROPE_INPUTS,
    SCORE,
    SCORE_INPUTS,
    SELECT,
    SELECT_INPUTS,
)
from dycoke_trt.kernels.context import write_context
from dycoke_trt.kernels.reorder import reorder_pool
from dycoke_trt.kernels.rotary import rotary
from dycoke_trt.kernels.score import ScoreWorkspace, reduce_scores, score_logits
from dycoke_trt.kernels.select import COUNTERS, SelectionOutput, select
from dycoke_trt.tests.engines.network.attention import CONTEXT
from dycoke_trt.tests.engines.network.evaluate import Plugin
from dycoke_trt.tests.engines.network.recording import RecordedLayer
from torch import Tensor

# Programs that share one sequence's keys: fewer than recorded, since each takes the interpreter
# milliseconds. Only the order of a sum depends on it.
MOST_SPLITS = 2


@dataclass
class KernelPlugins:
    """pool, heads: of one rank. counters: as the library counts."""

    pool: Tensor
    heads: int
    state: ReselectionState = field(init=False)
    counters: Tensor = field(init=False)

    def __post_init__(self) -> None:
        blocks, size = self.pool.shape[0], self.pool.shape[4]
        self.state = ReselectionState.allocate(blocks, size)
        self.counters = torch.zeros(COUNTERS, dtype=torch.int64)

    def plugins(self) -> dict[str, Plugin]:
        return {SCORE: self.score, SELECT: self.select, ROPE: self.rope}

    def counts(self) -> list[int]:
        return [int(count) for count in self.counters]

    def score(self, layer: RecordedLayer, inputs: list[Tensor]) -> list[Tensor]:
        given = dict(zip(SCORE_INPUTS, inputs, strict=True))
        table = given["kv_cache_block_offsets"][0]
        rows, _, width = table.shape
        splits = min(int(layer.values["splits"].item()), MOST_SPLITS)
        ranks = int(layer.values["ranks"].item())
        size = self.pool.shape[4]
        work = ScoreWorkspace.allocate(rows, self.heads, width, size, splits, "cpu")
        contexts = _context_rows(given)
        qkv = given["qkv"].unflatten(1, (-1, self.pool.shape[5]))
        angles = given["cos_sin"].reshape(-1, self.pool.shape[5] // 2, 2)
        score_logits(
            qkv, self.pool, table, given["sequence_length"], work,
            layer=int(layer.values["layer"].item()), context_rows=contexts, cos_sin=angles,
        )  # fmt: skip
        if ranks == 1:
            return [work.logits, work.maxima, work.sums]
        scores = torch.empty(rows, width * size)
        reduce_scores(
            work, given["sequence_length"], scores,
            context_rows=contexts, total_heads=self.heads * ranks,
        )  # fmt: skip
        return [scores]

    def select(self, layer: RecordedLayer, inputs: list[Tensor]) -> list[Tensor]:
        given = dict(zip(SELECT_INPUTS, inputs[: len(SELECT_INPUTS)], strict=True))
        order: Order = "importance" if layer.values["order"].item() else "raster"
        end = len(inputs) - (order == "importance")  # behind it, what is not read
        scores = inputs[len(SELECT_INPUTS) : end]
        table, lengths = given["kv_cache_block_offsets"][0], given["sequence_length"]
        rows, _, width = table.shape
        contexts = _context_rows(given)
        layers, size = self.pool.shape[1], self.pool.shape[4]
        write_context(
            self.state, given["input_ids"], table, lengths, given["context_lengths"],
            context_rows=contexts, layers=layers,
            visual_base=int(layer.values["visual_base"].item()),
        )  # fmt: skip
        splits = scores[1].shape[2] if len(scores) == 3 else 1
        work = ScoreWorkspace.allocate(rows, self.heads, width, size, splits, "cpu")
        if len(scores) == 3:
            work.logits, work.maxima, work.sums = scores
        out = SelectionOutput.allocate(rows, width, "cpu")
        out.counters = self.counters
        select(
            self.state, table, lengths, given["context_lengths"], work, given["keep_table"], out,
            layers=layers, mode=GateMode(int(layer.values["mode"].item())),
            threshold=float(layer.values["threshold"].item()),
            reduce="max" if layer.values["reduce_max"].item() else "sum",
            memory=float(layer.values["memory"].item()), order=order,
            scores=scores[0] if len(scores) == 1 else None, context_rows=contexts,
        )  # fmt: skip
        if order == "importance":
            reorder_pool(self.pool, table, work, first_layer=int(layer.values["moved_from"].item()))
        return [out.table[None], out.lengths]

    def rope(self, _: RecordedLayer, inputs: list[Tensor]) -> list[Tensor]:
        given = dict(zip(ROPE_INPUTS, inputs, strict=True))
        qkv = given["qkv"].unflatten(1, (-1, self.pool.shape[5])).contiguous()
        out = torch.empty_like(qkv)
        rotary(
            qkv, out, given["cos_sin"].reshape(-1, self.pool.shape[5] // 2, 2),
            given["sequence_length"], given["context_lengths"],
            heads=self.heads, kv_heads=self.pool.shape[3],
            context_rows=_context_rows(given),
        )  # fmt: skip
        return [out.flatten(1)]


def _context_rows(given: dict[str, Tensor]) -> int:
    return int((given["host_request_types"] == CONTEXT).sum())
