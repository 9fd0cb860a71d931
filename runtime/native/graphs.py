"""Decode steps on a device: one CUDA graph per batch size and table width.

A step's inputs lie in fixed buffers; lanes beyond the batch have length 0 and do nothing. Tables
hold all blocks a sequence owns, so they change only with the batch, not with every block that
fills. A step costs one small copy to the device, one graph launch, and one small copy back (the
likeliest tokens, and counts of what was selected), which is its only synchronisation.
"""

from __future__ import annotations

from operator import is_
from typing import Any

import torch

from ...arch.qwen2 import Qwen2
from ...core.config import DyCokeConfig
from ...core.decisions import Decision
from ...core.pool import encode_table
from ...core.reselection import block_keep_table, token_keep_table
from ...core.state import SPAN_BEGIN, SPAN_END, ReselectionState
from ...kernels.attention import AttentionWorkspace, splits_for
from ...kernels.common import padded
from ...kernels.reorder import listed_order
from ...kernels.score import MOST_SPLITS, ScoreWorkspace
from ...kernels.select import COUNTERS, SelectionOutput
from ...kernels.token_select import TokenSelectionOutput
from ..attention.cuda import CudaCache, DecodeStep, KernelPruner, Rows, TokenPruner
from ..selection import SelectionCounts, StepTrace, Trace
from ..steps import Lane, StepLogits


class Bucket:
    """Buffers and graph for up to `size` lanes with tables of `width` blocks."""

    def __init__(self, decoder: GraphDecoder, size: int, width: int) -> None:
        model, layout = decoder.model, decoder.cache.layout
        device, config = model.device, model.config
        self.size, self.width = size, width
        # Rows: token to feed, length, prompt length. Pinned, so that the copy needs no wait; wide
        # enough that every row is aligned, or small batches would be compiled apart.
        shape = (3, padded(size, 4))
        self.host = torch.zeros(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.inputs = torch.zeros(shape, dtype=torch.int32, device=device)
        self.table = torch.zeros(size, 2, width, dtype=torch.int32, device=device)
        self.owners: list[list[int]] = []  # blocks of the lanes that `table` shows
        splits = splits_for(size * layout.kv_heads, decoder.processors, MOST_SPLITS)
        self.attention = AttentionWorkspace(size, config.heads, config.head_dim, splits, device)
        self.pruner: KernelPruner | TokenPruner | None = None
        if decoder.state is not None:
            self.pruner = decoder.pruner(decoder.state, size, width, splits)
        self.logits = torch.empty(0)
        self.report = torch.empty(0)  # what a step reads back
        self.graph: torch.cuda.CUDAGraph | None = None

    def show(self, lanes: list[Lane], layers: int) -> None:
        """Brings the inputs of a step to the device."""
        self.host.zero_()
        columns = [(lane.token, lane.length, lane.prompt_length) for lane in lanes]
        self.host[:, : len(lanes)] = torch.tensor(columns, dtype=torch.int32).T
        self.inputs.copy_(self.host, non_blocking=True)
        # A sequence keeps its list as it is: no need to compare thousands of blocks.
        owners = [lane.blocks for lane in lanes]
        same = len(owners) == len(self.owners) and all(map(is_, owners, self.owners))
        if not same:
            blocks = [own[: self.width] + [0] * (self.width - len(own)) for own in owners]
            table = encode_table(torch.tensor(blocks), layers)
            self.table[: len(lanes)].copy_(table)
            self.owners = owners


class GraphDecoder:
    """Decodes whole steps of a model; graphs are recorded when first needed.

    counters: int64 on the device, since the beginning: those of kernels/select.py.
    selection: the same on the host, with what was attended to, as of the last step.
    """

    def __init__(
        self,
        model: Qwen2,
        cache: CudaCache,
        config: DyCokeConfig,
        state: ReselectionState | None,
        max_batch: int,
        *,
        graphs: bool | None = None,
    ) -> None:
        self.model, self.cache, self.config, self.state = model, cache, config, state
        self.max_batch = max_batch
        cuda = model.device.type == "cuda"
        self.graphs = cuda if graphs is None else graphs
        self.processors = (
            torch.cuda.get_device_properties(model.device).multi_processor_count if cuda else 2
        )
        if config.granularity == "block":
            keep_table = block_keep_table(config.p, cache.layout.num_blocks)
        else:
            keep_table = token_keep_table(config.p, model.config.max_positions)
        self.keep_table = keep_table.to(model.device)
        self.counters = torch.zeros(COUNTERS, dtype=torch.int64, device=model.device)
        self.selection = SelectionCounts()
        self._buckets: dict[tuple[int, int], Bucket] = {}
        self._memory: Any = None  # graphs share one pool of scratch memory

    @torch.no_grad()
    def step(self, lanes: list[Lane], trace: Trace | None = None) -> StepLogits:
        bucket = self._bucket(len(lanes), max(len(lane.blocks) for lane in lanes))
        bucket.show(lanes, self.model.config.layers)
        if bucket.graph is not None:
            bucket.graph.replay()
        else:
            self._run(bucket)
        report = bucket.report.tolist()
        logits = StepLogits(bucket.logits, report[: len(lanes)])
        if self.state is not None:
            *decisions, reorders, moved, attended = report[bucket.size :]
            self.selection.decisions = decisions
            self.selection.reorders, self.selection.moved = reorders, moved
            self.selection.context += sum(lane.length for lane in lanes)
            self.selection.attended += attended
        if trace is not None and self.state is not None:
            for row, lane in enumerate(lanes):
                trace(row, self._trace(bucket, row, lane))
        return logits

    def prepare(self, lanes: int, blocks: int) -> None:
        """Records the graphs of up to `lanes` sequences of `blocks` blocks, before they are due."""
        for count in range(1, lanes + 1):
            self._bucket(count, blocks)

    def _bucket(self, lanes: int, blocks: int) -> Bucket:
        size = min(padded(lanes), max(self.max_batch, lanes))
        width = padded(blocks, 8)
        bucket = self._buckets.get((size, width))
        if bucket is None:
            bucket = self._buckets[size, width] = Bucket(self, size, width)
            if self.graphs:
                self._capture(bucket)
        return bucket

    def _capture(self, bucket: Bucket) -> None:
        """Records the step. All lanes are unused then, so neither pool nor state is touched."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles kernels and lets libraries choose theirs
                self._run(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        bucket.graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile (the vision step of a server).
        with torch.cuda.graph(bucket.graph, pool=self._memory, capture_error_mode="thread_local"):
            self._run(bucket)
        self._memory = self._memory or bucket.graph.pool()

    def _run(self, bucket: Bucket) -> None:
        """One step on the bucket's buffers. Launches only: no allocation outside the graph's pool,
        nothing read back."""
        model = self.model
        tokens, lengths, prompts = bucket.inputs[:, : bucket.size].unbind()
        rows = Rows(bucket.table, lengths, prompts)
        attention = DecodeStep(self.cache, rows, bucket.attention, bucket.pruner)
        hidden = model.weights.embedding[tokens.long()]
        residual, delta = model.forward(hidden, attention)
        _, normed = model.add_norm(residual, delta, model.weights.final_norm)
        bucket.logits = model.head(normed)
        best = bucket.logits.argmax(-1)  # NaN counts as the largest
        largest = bucket.logits.gather(1, best[:, None])[:, 0]
        bucket.report = best.where(largest.isfinite(), -1)
        if bucket.pruner is not None:
            attended = bucket.pruner.selection.lengths.sum(dim=0, keepdim=True)
            bucket.report = torch.cat([bucket.report, self.counters, attended])

    def pruner(
        self, state: ReselectionState, size: int, width: int, splits: int
    ) -> KernelPruner | TokenPruner:
        """What up to `size` lanes with tables of `width` blocks select with."""
        config, device = self.model.config, self.model.device
        block = state.tokens_per_block
        scores = ScoreWorkspace.allocate(size, config.heads, width, block, splits, device)
        shared = (self.config, state, self.keep_table, scores)
        if self.config.granularity == "block":
            blocks = SelectionOutput.allocate(size, width, device)
            blocks.counters = self.counters
            return KernelPruner(*shared, blocks)
        tokens = TokenSelectionOutput.allocate(size, width, block, device)
        tokens.counters = self.counters
        return TokenPruner(*shared, tokens)

    def _trace(self, bucket: Bucket, row: int, lane: Lane) -> StepTrace:
        """What the step did to one lane, read back: for figures and tests, it synchronises."""
        state, size = self.state, self.cache.layout.tokens_per_block
        assert state is not None
        assert bucket.pruner is not None
        record = state.record[lane.blocks[(lane.prompt_length - 1) // size]].tolist()
        blocks = torch.tensor(lane.blocks, device=self.model.device)
        position = torch.arange(record[SPAN_BEGIN], record[SPAN_END], device=self.model.device)
        place = blocks[position // size], position % size
        visual = state.visual[place]
        selection = bucket.pruner.selection
        attended = int(selection.lengths[row])
        if isinstance(selection, SelectionOutput):
            entries = selection.table[row, 0, : -(-attended // size)]
            kept = torch.isin(bucket.table[row, 0, position // size], entries)
        else:
            kept = torch.isin(place[0] * size + place[1], selection.slots[row, :attended])
        order = None
        if self.config.order == "importance":
            span = position[visual]
            order = torch.searchsorted(span, listed_order(bucket.pruner.scores, row)[span]).cpu()
        return StepTrace(
            decision=Decision(int(selection.decision[row])),
            similarity=float(selection.similarity[row]),
            scores=state.scores[place][visual].cpu(),
            kept=kept[visual].nonzero()[:, 0].cpu(),
            order=order,
        )
