"""Contexts, gate, order, selection and compaction over many steps, beside core/state.py.

Requests come and go on recycled blocks; a step mixes prompt chunks, decode rows and unused lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from dycoke_trt.core import pool as kv_pool
from dycoke_trt.core import state as core
from dycoke_trt.core.decisions import Decision, GateMode
from dycoke_trt.core.pool import encode_table
from dycoke_trt.core.reselection import block_keep_table, prunable_blocks, visual_scores
from dycoke_trt.core.state import ReselectionState
from dycoke_trt.kernels.context import write_context
from dycoke_trt.kernels.reorder import listed_order, reorder_pool
from dycoke_trt.kernels.score import ScoreWorkspace, score_logits
from dycoke_trt.kernels.select import COUNTERS, SelectionOutput, select
from dycoke_trt.tests.draws import assume, few_examples, given, st
from dycoke_trt.tests.kernels.device.batches import DEVICE, DTYPES, POISON_BLOCK
from torch import Tensor

VISUAL, LAYERS, THRESHOLD = 100, 2, 0.9


@dataclass
class Row:
    """A request: its ids, the part that was prefilled, and its blocks."""

    ids: list[int]
    blocks: list[int]
    chunk: int
    steps: int  # to decode
    length: int = 0

    @property
    def decoding(self) -> bool:
        return self.length >= len(self.ids)


@dataclass
class World:
    """Two states side by side, the kernels' and core's, and the requests that use them."""

    size: int
    width: int
    seed: int
    gaps: bool = False  # text between visual tokens, so prunable blocks are not all neighbours
    whole: bool = False  # prompts come in one chunk and are nearly all visual
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)
        self.num_blocks = 3 * self.width
        self.mine = ReselectionState.allocate(self.num_blocks, self.size, DEVICE)
        self.theirs = ReselectionState.allocate(self.num_blocks, self.size, DEVICE)
        for tensor in (self.mine, self.theirs):  # leftovers of earlier owners
            tensor.visual.fill_(True)
            tensor.scores.fill_(7.0)
            tensor.average.fill_(8.0)
            tensor.keep.fill_(False)
        self.free = torch.randperm(self.num_blocks, generator=self.random).tolist()

    def draw(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.random))

    def admit(self) -> None:
        steps = self.draw(1, 4)
        most = self.width * self.size - steps
        prompt = self.draw(most // 2 if self.whole else min(2, most), most)
        begin = self.draw(0, prompt - 1)
        end = self.draw(begin, prompt) if self.draw(0, 3) else begin  # now and then: no video
        if self.whole or self.draw(0, 1):
            begin, end = min(begin, 2), max(end, prompt - 2)  # nearly all of it
        ids = [VISUAL if begin <= t < end else 1 for t in range(prompt)]
        if self.gaps and self.draw(0, 1):
            ids[self.draw(begin, max(begin, end - 1))] = 1
        blocks = [self.free.pop(self.draw(0, len(self.free) - 1)) for _ in range(self.width)]
        chunk = prompt if self.whole else self.draw(1, prompt)
        self.rows.append(Row(ids, blocks, chunk, steps))

    def advance(self) -> tuple[list[Row], list[Row], list[list[int]]]:
        """Context rows, decode rows, and the ids that the context rows feed."""
        while len(self.rows) < 3 and len(self.free) >= self.width:
            self.admit()
        contexts = [row for row in self.rows if not row.decoding]
        decodes = [row for row in self.rows if row.decoding]
        fed = []
        for row in contexts:
            upto = min(row.length + row.chunk, len(row.ids))
            fed.append(row.ids[row.length : upto])
            row.length = upto
        for row in decodes:
            row.length += 1
            row.steps -= 1
        return contexts, decodes, fed

    def retire(self) -> None:
        for row in self.rows:
            if row.steps == 0:
                self.free += row.blocks
        self.rows = [row for row in self.rows if row.steps > 0]

    def blocks(self, rows: list[Row]) -> Tensor:
        used = [-(-row.length // self.size) for row in rows]
        lines = [
            row.blocks[:n] + [POISON_BLOCK] * (self.width - n)
            for row, n in zip(rows, used, strict=True)
        ]
        return torch.tensor(lines, device=DEVICE).view(len(rows), self.width)


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@dataclass
class Outcome:
    mine: SelectionOutput
    workspace: ScoreWorkspace
    theirs: core.Reselection
    first: int  # row of the first decode row


def compare(world: World, outcome: Outcome, decodes: list[Row], full: Tensor) -> None:
    """Equal decisions, orders, tables, lengths, states; context rows and unused lanes unchanged."""
    mine, work, theirs, first = outcome.mine, outcome.workspace, outcome.theirs, outcome.first
    last = first + len(decodes)
    if theirs.order is None:
        assert not work.moved.any()
    else:
        assert not work.moved[:first].any() and not work.moved[last:].any()  # noqa: PT018
        for index, order in enumerate(theirs.order):
            assert torch.equal(listed_order(work, first + index), order)
    assert torch.equal(mine.decision[first:last], theirs.decision)
    assert torch.equal(mine.lengths[first:last], theirs.lengths.int())
    assert torch.equal(mine.table[first:last], encode_table(theirs.table, LAYERS))
    assert torch.equal(mine.table[:first], full[:first])
    assert torch.equal(mine.table[last:], full[last:])
    known = theirs.decision != Decision.UNKNOWN
    got = mine.similarity[first:last][known]
    torch.testing.assert_close(got, theirs.similarity[known], atol=1e-5, rtol=0)
    rows = world.num_blocks
    assert torch.equal(world.mine.record[:rows], world.theirs.record[:rows])
    assert torch.equal(world.mine.keep[:rows], world.theirs.keep[:rows])
    for name in ("scores", "average"):
        got, expected = (getattr(state, name)[:rows] for state in (world.mine, world.theirs))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    for row in decodes:  # marks are compared where there is a prompt: only they mean anything
        prompt = torch.arange(len(row.ids), device=DEVICE)
        block = torch.tensor(row.blocks, device=DEVICE)[prompt // world.size]
        marks = world.mine.visual[block, prompt % world.size]
        assert marks.tolist() == [id_ == VISUAL for id_ in row.ids]
        fed = row.length - 1
        assert not world.mine.visual[row.blocks[fed // world.size], fed % world.size]


def follow(
    world: World, levels: int, p: float, steps: int, suppose: Callable[[bool], object],
    **options: Any,
) -> Tensor:  # fmt: skip
    """Both side by side for so many steps; returns what the counters say, which is compared too.

    suppose: is told whether every decision is clear, not within rounding of the threshold.
    """
    width, size = world.width, world.size
    keep_table = block_keep_table(p, width).to(DEVICE)
    lanes = 4  # one more than requests: unused
    workspace = ScoreWorkspace.allocate(lanes, 1, width, size, 1, DEVICE)
    out = SelectionOutput.allocate(lanes, width, DEVICE)
    counts = torch.zeros(COUNTERS, dtype=torch.int64, device=DEVICE)
    scores = torch.zeros(lanes, width * size, device=DEVICE)
    for _ in range(steps):
        contexts, decodes, fed = world.advance()
        rows = contexts + decodes
        empty = lanes - len(rows)
        blocks = torch.cat(
            [world.blocks(rows), torch.full((empty, width), POISON_BLOCK).to(DEVICE)]
        )
        table = encode_table(blocks, LAYERS).contiguous()
        lengths = ints([row.length for row in rows] + [0] * empty)
        chunks = ints([len(ids) for ids in fed] + [len(row.ids) for row in decodes] + [0] * empty)
        ids = ints([id_ for part in fed for id_ in part] + [1] * (len(decodes) + empty))
        first = len(contexts)
        write_context(
            world.mine, ids, table, lengths, chunks,
            context_rows=first, layers=LAYERS, visual_base=VISUAL,
        )  # fmt: skip
        past = (lengths - chunks)[:first]
        visual = torch.zeros(first, width * size, dtype=torch.bool, device=DEVICE)
        for i, row in enumerate(contexts):
            visual[i, : row.length] = torch.tensor(row.ids[: row.length]) == VISUAL
        core.write_context(world.theirs, blocks[:first], past, lengths[:first], visual)

        # Multiples of 1/64 sum exactly, so equal scores tie exactly; mostly like those before.
        change = torch.rand(lanes, 1, generator=world.random) < 0.4
        fresh = torch.randint(0, levels + 1, scores.shape, generator=world.random) / 64
        scores = torch.where(change.to(DEVICE), fresh.to(DEVICE), scores)
        select(
            world.mine, table, lengths, chunks, workspace, keep_table, out, layers=LAYERS,
            threshold=THRESHOLD, scores=scores, context_rows=first, **options,
        )  # fmt: skip
        if decodes:
            part = slice(first, first + len(decodes))
            theirs = core.reselect(
                world.theirs, blocks[part], lengths[part], chunks[part], scores[part],
                keep_table=keep_table, threshold=THRESHOLD, **options,
            )  # fmt: skip
            suppose(bool(((theirs.similarity - THRESHOLD).abs() > 1e-5).all()))
            compare(world, Outcome(out, workspace, theirs, first), decodes, table)
            counts[:-2] += torch.bincount(theirs.decision, minlength=len(Decision))
            if theirs.order is not None:
                moved = (theirs.order != torch.arange(width * size, device=DEVICE)).sum(1)
                counts[-2] += moved.count_nonzero()
                counts[-1] += moved.sum()
        world.retire()
    assert torch.equal(out.counters, counts)
    return counts


@few_examples
@given(
    size=st.sampled_from([8, 16, 32]),
    width=st.integers(2, 9),
    levels=st.integers(1, 4),
    mode=st.sampled_from(GateMode),
    reduce=st.sampled_from(["sum", "max"]),
    p=st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95]),
    memory=st.sampled_from([0.0, 0.5, 0.75]),  # with these, averages and their sums are exact
    order=st.sampled_from(["raster", "importance"]),
    seed=st.integers(0, 2**31),
)
def test_selection_equals_core_step_by_step(
    size: int, width: int, levels: int, mode: GateMode, reduce: str, p: float, memory: float,
    order: str, seed: int,
) -> None:  # fmt: skip
    options = {"mode": mode, "reduce": reduce, "memory": memory, "order": order}
    follow(World(size, width, seed, gaps=True), levels, p, 6, assume, **options)


@pytest.mark.parametrize(
    ("mode", "memory", "seed"),
    [(GateMode.REUSE, 0.0, 1), (GateMode.ALWAYS, 0.75, 2), (GateMode.FULL, 0.5, 3)],
)
def test_selected_tokens_change_places(mode: GateMode, memory: float, seed: int) -> None:
    """Longer, with whole prompts of many visual tokens, so that every step has swaps to make."""

    def certain(clear: bool) -> None:
        assert clear

    world = World(8, 9, seed, gaps=True, whole=True)
    counts = follow(world, 4, 0.6, 9, certain, mode=mode, memory=memory, order="importance")
    assert counts[Decision.RESELECT] >= counts[-2] > 5
    assert counts[-1] > 60


@few_examples
@given(
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([8, 16]),
    heads=st.sampled_from([(1, 1), (2, 1), (6, 2)]),
    splits=st.sampled_from([1, 4]),
    memory=st.sampled_from([0.0, 0.5]),
    order=st.sampled_from(["raster", "importance"]),
    seed=st.integers(0, 2**31),
)
def test_the_launches_equal_core(
    dtype: torch.dtype, size: int, heads: tuple[int, int], splits: int, memory: float, order: str,
    seed: int,
) -> None:  # fmt: skip
    """Logits and statistics, then score, gate, select and compact, from q and the paged keys; in
    order of importance keys follow their tokens."""
    query_heads, kv_heads = heads
    options = {"threshold": THRESHOLD, "memory": memory, "order": order}
    width, dim, p = 8, 16, 0.6
    world = World(size, width, seed)
    generator = world.random
    pool = torch.randn(world.num_blocks, LAYERS, 2, kv_heads, size, dim, generator=generator)
    pool = pool.to(DEVICE, dtype)
    keep_table = block_keep_table(p, width).to(DEVICE)
    out = SelectionOutput.allocate(3, width, DEVICE)
    shape = (3, query_heads + 2 * kv_heads, dim)
    fed = torch.randn(shape, generator=generator)
    for _ in range(5):
        contexts, decodes, chunk = world.advance()
        rows = contexts + decodes
        blocks, first = world.blocks(rows), len(contexts)
        table = encode_table(blocks, LAYERS).contiguous()
        lengths = ints([row.length for row in rows])
        context = ints([len(ids) for ids in chunk] + [len(row.ids) for row in decodes])
        ids = ints([id_ for part in chunk for id_ in part] + [1] * len(decodes))
        for state in (world.mine, world.theirs):  # contexts have their own test
            write_context(
                state, ids, table, lengths, context,
                context_rows=first, layers=LAYERS, visual_base=VISUAL,
            )  # fmt: skip
        fed = fed + 0.3 * torch.randn(shape, generator=generator)
        decode_qkv = fed[: len(decodes)].to(DEVICE, dtype)
        filler = torch.full((len(ids) - len(decodes), *shape[1:]), torch.nan)
        qkv = torch.cat([filler.to(DEVICE, dtype), decode_qkv])
        workspace = ScoreWorkspace.allocate(len(rows), query_heads, width, size, splits, DEVICE)
        score_logits(
            qkv, pool, table, lengths, workspace, layer=1, context_rows=first, tile=16
        )  # fmt: skip
        select(
            world.mine, table, lengths, context, workspace, keep_table, out,
            layers=LAYERS, context_rows=first, **options,
        )  # fmt: skip
        if decodes:
            there, length, prompt = blocks[first:], lengths[first:], context[first:]
            visual, _ = core.visual_positions(world.theirs, there, length, prompt)
            keys = kv_pool.gather(pool, table[first:], 1, kv_pool.KEY)
            scores = visual_scores(
                decode_qkv[:, :query_heads], decode_qkv[:, query_heads : query_heads + kv_heads],
                keys, length, visual,
            )  # fmt: skip
            theirs = core.reselect(
                world.theirs, there, length, prompt, scores, keep_table=keep_table, **options
            )
            ranked = world.theirs.average if memory else world.theirs.scores
            ranked = ranked[there.clamp(max=world.num_blocks)].flatten(1)
            assume(decided(theirs, ranked, visual, length))
            assume(((theirs.similarity - THRESHOLD).abs() > 1e-4).all())
            whole = SelectionOutput(
                out.table[: len(rows)], out.lengths[: len(rows)], out.decision[: len(rows)],
                out.similarity[: len(rows)], out.counters,
            )  # fmt: skip
            compare(world, Outcome(whole, workspace, theirs, first), decodes, table)
        if order == "importance":
            reorder_pool(pool, table, workspace, first_layer=1)
        world.retire()


def decided(theirs: core.Reselection, ranked: Tensor, visual: Tensor, lengths: Tensor) -> bool:
    """Whether what new selections took ranks higher than the rest by more than sums in another
    order may: blocks, or tokens in order of importance. ranked: fp32 [S, M*B], behind the step."""
    size = ranked.shape[1] // theirs.keep.shape[1]
    if theirs.order is None:
        candidate, kept = prunable_blocks(visual, lengths, size), theirs.keep
        ranked = ranked.unflatten(1, (-1, size)).sum(-1)
    else:
        candidate, kept = visual, theirs.keep.repeat_interleave(size, dim=1)
    for row in (theirs.decision == Decision.RESELECT).nonzero()[:, 0]:
        best, rest = (ranked[row][candidate[row] & side[row]] for side in (kept, ~kept))
        if len(best) and len(rest) and best.min() - rest.max() <= 1e-6:
            return False
    return True


@pytest.mark.parametrize("fault", ["stale record", "outside the pool", "no prompt"])
def test_unknown_state_passes_through(fault: str) -> None:
    world = World(8, 4, 0)
    if fault == "outside the pool":  # of the state: it may be smaller than the engine's pool
        world.mine = ReselectionState.allocate(2, 8, DEVICE)
    table = encode_table(torch.tensor([[5, 6, 7, POISON_BLOCK]]), LAYERS).to(DEVICE).contiguous()
    lengths, prompt = ints([20]), ints([0 if fault == "no prompt" else 18])
    if fault == "stale record":
        world.mine.record[7] = ints([17, 0, 17, 0])
    before = [t.clone() for t in (world.mine.scores, world.mine.keep, world.mine.record)]
    workspace = ScoreWorkspace.allocate(1, 1, 4, 8, 1, DEVICE)
    out = SelectionOutput.allocate(1, 4, DEVICE)
    select(
        world.mine, table, lengths, prompt, workspace, block_keep_table(0.9, 4).to(DEVICE), out,
        layers=LAYERS, scores=torch.rand(1, 32, device=DEVICE),
    )  # fmt: skip
    assert out.decision.tolist() == [Decision.UNKNOWN]
    assert out.counters.tolist() == [0, 0, 0, 1, 0, 0]
    assert workspace.moved.tolist() == [0]
    assert torch.equal(out.table, table)
    assert torch.equal(out.lengths, lengths)
    after = (world.mine.scores, world.mine.keep, world.mine.record)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("order", "memory", "width"), [("raster", 0.0, 150), ("importance", 0.5, 640)]
)
def test_more_blocks_than_one_tile(order: str, memory: float, width: int) -> None:
    """Ranks, places and swaps run over several tiles; ties go to the lowest position.

    In order of importance 5,114 tokens make five tiles of keys, and their swaps two.
    """
    size, options = 8, {"memory": memory, "order": order}
    state = ReselectionState.allocate(width, size, DEVICE)
    twin = ReselectionState.allocate(width, size, DEVICE)
    blocks = torch.randperm(width, generator=torch.Generator().manual_seed(3))[None].to(DEVICE)
    table = encode_table(blocks, LAYERS).contiguous()
    prompt, length = ints([width * size - 6]), ints([width * size - 4])
    visual = torch.ones(1, width * size, dtype=torch.bool, device=DEVICE)
    for one in (state, twin):
        core.write_context(one, blocks, torch.zeros_like(prompt), prompt, visual)
    keep_table = block_keep_table(0.5, width).to(DEVICE)
    workspace = ScoreWorkspace.allocate(1, 1, width, size, 1, DEVICE)
    out = SelectionOutput.allocate(1, width, DEVICE)
    generator = torch.Generator().manual_seed(4)
    scores = torch.randint(0, 9, (1, width * size), generator=generator).to(DEVICE) / 64
    for expected in (Decision.RESELECT, Decision.REUSE):
        select(state, table, length, prompt, workspace, keep_table, out, layers=LAYERS,
               scores=scores, **options)  # fmt: skip
        theirs = core.reselect(
            twin, blocks, length, prompt, scores, keep_table=keep_table, **options
        )
        assert torch.equal(out.table, encode_table(theirs.table, LAYERS))
        assert torch.equal(out.lengths, theirs.lengths.int())
        assert out.decision.tolist() == theirs.decision.tolist() == [expected]
        for name in ("scores", "average", "keep"):
            assert torch.equal(getattr(state, name)[:width], getattr(twin, name)[:width])
        if theirs.order is not None:
            assert torch.equal(listed_order(workspace, 0), theirs.order[0])
            scores = scores.gather(1, theirs.order)  # they follow their tokens
    moves = order == "importance"
    assert (int(out.counters[-1]) > 2 * 1024) == moves
