"""Selection token by token over many steps, beside core/state.py on the same data."""

from __future__ import annotations

import pytest
import torch
from dycoke_trt.core import pool as kv_pool
from dycoke_trt.core import state as core
from dycoke_trt.core.decisions import Decision, GateMode
from dycoke_trt.core.pool import encode_table
from dycoke_trt.core.reselection import token_keep_table, visual_scores
from dycoke_trt.core.state import ReselectionState
from dycoke_trt.kernels.score import ScoreWorkspace, score_logits
from dycoke_trt.kernels.token_select import TokenSelectionOutput, select_tokens
from dycoke_trt.tests.draws import assume, few_examples, given, st
from dycoke_trt.tests.kernels.device.batches import DEVICE, DTYPES, POISON_BLOCK
from dycoke_trt.tests.kernels.device.test_select import (
    LAYERS,
    THRESHOLD,
    VISUAL,
    Row,
    World,
    ints,
)
from torch import Tensor


class TokenWorld(World):
    """The same requests with marks per token, and steps of decode rows alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mine", "theirs"):
            state = ReselectionState.allocate(self.num_blocks, self.size, DEVICE, "token")
            state.visual.fill_(True)  # leftovers of earlier owners
            state.scores.fill_(7.0)
            state.average.fill_(7.0)
            state.keep.fill_(False)
            setattr(self, name, state)

    def decode_rows(self) -> list[Row]:
        """Brings prompts forward, and every request that decodes by one token."""
        contexts, decodes, _ = self.advance()
        if contexts:
            blocks, lengths = self.blocks(contexts), ints([row.length for row in contexts])
            past = ints([(row.length - 1) // row.chunk * row.chunk for row in contexts])
            visual = torch.zeros(len(contexts), self.width * self.size, dtype=torch.bool)
            for i, row in enumerate(contexts):
                visual[i, : row.length] = torch.tensor(row.ids[: row.length]) == VISUAL
            for state in (self.mine, self.theirs):
                core.write_context(state, blocks, past, lengths, visual.to(DEVICE))
        return decodes


def check(
    world: World, mine: TokenSelectionOutput, theirs: core.TokenReselection, decodes: list[Row]
) -> None:
    """Equal decisions, lists and states; nothing listed in unused lanes."""
    count = len(decodes)
    assert torch.equal(mine.decision[:count], theirs.decision)
    known = theirs.decision != Decision.UNKNOWN
    torch.testing.assert_close(
        mine.similarity[:count][known], theirs.similarity[known], atol=1e-5, rtol=0
    )
    for i, row in enumerate(decodes):
        kept = theirs.keep[i, : row.length].nonzero()[:, 0].tolist()
        slots = [row.blocks[t // world.size] * world.size + t % world.size for t in kept]
        assert mine.slots[i, : mine.lengths[i]].tolist() == slots
    assert not mine.lengths[count:].any()
    rows = world.num_blocks
    assert torch.equal(world.mine.record[:rows], world.theirs.record[:rows])
    assert torch.equal(world.mine.keep[:rows], world.theirs.keep[:rows])
    for name in ("scores", "average"):
        a, b = getattr(world.mine, name)[:rows], getattr(world.theirs, name)[:rows]
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for row in decodes:  # the fed token's slot is no visual one, whoever had it before
        fed = row.length - 1
        assert not world.mine.visual[row.blocks[fed // world.size], fed % world.size]


@few_examples
@given(
    size=st.sampled_from([8, 16, 32]),
    width=st.integers(2, 9),
    levels=st.sampled_from([1, 4, 10**6]),
    mode=st.sampled_from(GateMode),
    memory=st.sampled_from([0.0, 0.5, 0.75]),
    p=st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95]),
    seed=st.integers(0, 2**31),
)
def test_selection_equals_core_step_by_step(
    size: int, width: int, levels: int, mode: GateMode, memory: float, p: float, seed: int
) -> None:
    world = TokenWorld(size, width, seed)
    keep_table = token_keep_table(p, width * size).to(DEVICE)
    lanes = 4  # one more than requests: unused
    workspace = ScoreWorkspace.allocate(lanes, 1, width, size, 1, DEVICE)
    out = TokenSelectionOutput.allocate(lanes, width, size, DEVICE)
    counts = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    scores = torch.zeros(lanes, width * size, device=DEVICE)
    rule = {"keep_table": keep_table, "mode": mode, "threshold": THRESHOLD, "memory": memory}
    for _ in range(6):
        decodes = world.decode_rows()
        count = len(decodes)
        spare = torch.full((lanes - count, width), POISON_BLOCK, device=DEVICE)
        blocks = torch.cat([world.blocks(decodes), spare])
        lengths = ints([row.length for row in decodes] + [0] * len(spare))
        prompts = ints([len(row.ids) for row in decodes] + [0] * len(spare))
        # With few levels, equal scores tie exactly; mostly like those before.
        change = torch.rand(lanes, 1, generator=world.random) < 0.4
        fresh = torch.randint(0, levels + 1, scores.shape, generator=world.random) / 2**21
        scores = torch.where(change.to(DEVICE), fresh.to(DEVICE), scores)
        table = encode_table(blocks, LAYERS).contiguous()
        select_tokens(
            world.mine, table, lengths, prompts, workspace, out=out, scores=scores,
            layers=LAYERS, **rule,
        )  # fmt: skip
        if decodes:
            theirs = core.reselect_tokens(
                world.theirs, blocks[:count], lengths[:count], prompts[:count], scores[:count],
                **rule,
            )  # fmt: skip
            assume(((theirs.similarity - THRESHOLD).abs() > 1e-5).all())
            check(world, out, theirs, decodes)
            counts += torch.bincount(theirs.decision, minlength=4)
        world.retire()
    assert torch.equal(out.counters, counts)


@few_examples
@given(
    dtype=st.sampled_from(DTYPES),
    heads=st.sampled_from([(1, 1), (6, 2)]),
    memory=st.sampled_from([0.0, 0.8]),
    seed=st.integers(0, 2**31),
)
def test_the_two_launches_equal_core(
    dtype: torch.dtype, heads: tuple[int, int], memory: float, seed: int
) -> None:
    """Logits and statistics, then scores, gate and list, from q and the paged keys."""
    query_heads, kv_heads = heads
    size, width, dim = 8, 5, 16
    world = TokenWorld(size, width, seed)
    shape = (3, query_heads + 2 * kv_heads, dim)
    fed = torch.randn(shape, generator=world.random)
    pool = torch.randn(
        world.num_blocks, LAYERS, 2, kv_heads, size, dim, generator=world.random
    ).to(DEVICE, dtype)  # fmt: skip
    out = TokenSelectionOutput.allocate(3, width, size, DEVICE)
    keep_table = token_keep_table(0.6, width * size).to(DEVICE)
    rule = {"keep_table": keep_table, "threshold": THRESHOLD, "memory": memory}
    for _ in range(4):
        decodes = world.decode_rows()
        fed = fed + 0.3 * torch.randn(shape, generator=world.random)
        if decodes:
            count = len(decodes)
            blocks, qkv = world.blocks(decodes), fed[:count].to(DEVICE, dtype)
            table = encode_table(blocks, LAYERS).contiguous()
            lengths = ints([row.length for row in decodes])
            prompts = ints([len(row.ids) for row in decodes])
            workspace = ScoreWorkspace.allocate(count, query_heads, width, size, 2, DEVICE)
            score_logits(qkv, pool, table, lengths, workspace, layer=1, tile=16)
            out.lengths.zero_()
            select_tokens(
                world.mine, table, lengths, prompts, workspace, out=out, layers=LAYERS, **rule
            )
            visual, _ = core.visual_positions(world.theirs, blocks, lengths, prompts)
            keys = kv_pool.gather(pool, table, 1, kv_pool.KEY)
            scores = visual_scores(
                qkv[:, :query_heads], qkv[:, query_heads : query_heads + kv_heads],
                keys, lengths, visual,
            )  # fmt: skip
            theirs = core.reselect_tokens(world.theirs, blocks, lengths, prompts, scores, **rule)
            assume(((theirs.similarity - THRESHOLD).abs() > 1e-4).all())
            ranked = world.theirs.average if memory else world.theirs.scores
            ranked = ranked[blocks.clamp(max=world.num_blocks)].flatten(1)
            assume(decided(ranked, visual, keep_table))
            check(world, out, theirs, decodes)
        world.retire()


def decided(ranked: Tensor, visual: Tensor, keep_table: Tensor) -> bool:
    """Whether the last token that is kept leads the next by more than sums in another order may."""
    for line, own in zip(ranked, visual, strict=True):
        best = line[own].sort(descending=True).values
        kept = int(keep_table[len(best)])
        if 0 < kept < len(best) and best[kept - 1] - best[kept] < 1e-7:
            return False
    return True


@pytest.mark.parametrize("fault", ["stale record", "outside the pool", "no prompt"])
def test_of_an_unknown_sequence_all_tokens_are_listed(fault: str) -> None:
    blocks, length = [5, 6, 7], 20
    state = ReselectionState.allocate(
        2 if fault == "outside the pool" else 8, 8, DEVICE, "token"
    )  # the state may be smaller than the pool
    if fault == "stale record":
        state.record[7] = ints([17, 0, 17, 0])
    table = encode_table(torch.tensor([[*blocks, POISON_BLOCK]]), LAYERS).to(DEVICE).contiguous()
    before = [t.clone() for t in (state.scores, state.average, state.keep, state.record)]
    out = TokenSelectionOutput.allocate(1, 4, 8, DEVICE)
    select_tokens(
        state, table, ints([length]), ints([0 if fault == "no prompt" else 18]),
        ScoreWorkspace.allocate(1, 1, 4, 8, 1, DEVICE), token_keep_table(0.9, 32).to(DEVICE), out,
        layers=LAYERS, scores=torch.rand(1, 32, device=DEVICE),
    )  # fmt: skip
    assert out.decision.tolist() == [Decision.UNKNOWN]
    assert out.counters.tolist() == [0, 0, 0, 1]
    listed = [block * 8 + slot for block in blocks for slot in range(8)][:length]
    assert out.slots[0, : out.lengths[0]].tolist() == listed
    after = (state.scores, state.average, state.keep, state.record)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_more_tokens_than_one_tile() -> None:
    """Counts, ties and places run over several tiles; ties go to the lowest position."""
    size, width = 8, 300
    states = [ReselectionState.allocate(width, size, DEVICE, "token") for _ in range(2)]
    random = torch.Generator().manual_seed(3)
    blocks = torch.randperm(width, generator=random)[None].to(DEVICE)
    table = encode_table(blocks, LAYERS).contiguous()
    prompt, length = ints([width * size - 6]), ints([width * size - 4])
    visual = torch.ones(1, width * size, dtype=torch.bool, device=DEVICE)
    visual[:, :5] = False
    for state in states:
        core.write_context(state, blocks, torch.zeros_like(prompt), prompt, visual)
    keep_table = token_keep_table(0.7, width * size).to(DEVICE)
    out = TokenSelectionOutput.allocate(1, width, size, DEVICE)
    scores = torch.randint(0, 3, (1, width * size), generator=random).to(DEVICE) / 64
    for decision in (Decision.RESELECT, Decision.REUSE):
        select_tokens(
            states[0], table, length, prompt, ScoreWorkspace.allocate(1, 1, width, size, 1, DEVICE),
            keep_table, out, layers=LAYERS, scores=scores,
        )  # fmt: skip
        theirs = core.reselect_tokens(
            states[1], blocks, length, prompt, scores, keep_table=keep_table
        )
        assert out.decision.tolist() == theirs.decision.tolist() == [decision]
        kept = theirs.keep[0, : int(length)].nonzero()[:, 0]
        slots = blocks[0, kept // size] * size + kept % size
        assert out.slots[0, : out.lengths[0]].tolist() == slots.tolist()
