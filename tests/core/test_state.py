"""Dynamic pruning over many steps: contexts in chunks, recycled blocks, batches, a slow form."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from dycoke_trt.core.counts import blocks_kept
from dycoke_trt.core.decisions import Decision, GateMode
from dycoke_trt.core.reselection import block_keep_table, visual_scores
from dycoke_trt.core.state import (
    Reselection,
    ReselectionState,
    reselect,
    visual_positions,
    write_context,
)
from hypothesis import given
from hypothesis import strategies as st

SIZE, WIDTH = 4, 10
POISON_BLOCK = 10**8


@dataclass
class Sequence:
    """One request, and the plain-Python memory of the slow form, in which no token ever moves:
    `holds` says which token lies at which position."""

    prompt: int
    begin: int
    end: int
    blocks: list[int]
    length: int
    scores: dict[int, float] = field(default_factory=dict)
    average: dict[int, np.float32] = field(default_factory=dict)
    steps: int = 0
    dropped: set[int] = field(default_factory=set)
    holds: list[int] = field(default_factory=lambda: list(range(WIDTH * SIZE)))

    def table(self) -> list[int]:
        used = -(-self.length // SIZE)
        return self.blocks[:used] + [POISON_BLOCK] * (WIDTH - used)

    def slow_step(
        self, scores: list[float], p: float, mode: GateMode, reduce: str,
        memory: float = 0.0, order: str = "raster",
    ) -> tuple[int, set[int]]:  # fmt: skip
        """Gate, selection and moves by plain loops: (decision, logical blocks dropped).

        scores: by token, wherever it lies.
        """
        visual = range(self.begin, self.end)
        now = {t: scores[t] for t in visual}
        dot = sum(now[t] * self.scores.get(t, 0.0) for t in visual)
        norms = sum(v * v for v in now.values()) * sum(v * v for v in self.scores.values())
        cosine = dot / norms**0.5 if norms > 0 else 0.0
        first, self.scores = self.steps == 0, now
        fresh = {t: np.float32(now[t]) for t in visual}
        past = fresh if first else self.average
        self.average = {t: fresh[t] + np.float32(memory) * (past[t] - fresh[t]) for t in visual}
        tail = (self.length - 1) // SIZE
        inside = [b for b in range(tail) if self.begin <= b * SIZE and (b + 1) * SIZE <= self.end]
        kept = blocks_kept(len(inside), p)
        self.steps += 1
        if order == "importance":
            self.dropped = set(inside[kept:])
        close = cosine >= 0.9
        stable = dict(zip(GateMode, (close, close, False, True), strict=True))
        if not first and stable[mode]:
            return (
                (Decision.FULL, set()) if mode == GateMode.FULL else (Decision.REUSE, self.dropped)
            )
        if order == "importance":
            places = [t for t in visual if t // SIZE not in self.dropped]
            best = sorted(visual, key=lambda t: (-self.average[self.holds[t]], t))[: len(places)]
            entering = sorted(set(best) - set(places))
            for new, old in zip(entering, sorted(set(places) - set(best)), strict=True):
                self.holds[new], self.holds[old] = self.holds[old], self.holds[new]
            return Decision.RESELECT, self.dropped
        combine = sum if reduce == "sum" else max
        score = {
            b: combine(float(self.average[t]) for t in range(b * SIZE, (b + 1) * SIZE))
            for b in inside
        }
        ranked = sorted(inside, key=lambda b: (-score[b], b))
        self.dropped = set(ranked[kept:])
        return Decision.RESELECT, self.dropped


def make_sequences(count: int, generator: torch.Generator, num_blocks: int) -> list[Sequence]:
    free = torch.randperm(num_blocks, generator=generator).tolist()

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    sequences = []
    for _ in range(count):
        prompt = draw(2, WIDTH * SIZE - 8)
        begin = draw(0, prompt - 1)
        end = draw(begin + 1, prompt)
        blocks = [free.pop() for _ in range(WIDTH)]
        sequences.append(Sequence(prompt, begin, end, blocks, prompt))
    return sequences


def tensors(sequences: list[Sequence]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    blocks = torch.tensor([s.table() for s in sequences], dtype=torch.int32)
    lengths = torch.tensor([s.length for s in sequences], dtype=torch.int32)
    prompts = torch.tensor([s.prompt for s in sequences], dtype=torch.int32)
    return blocks, lengths, prompts


def visual_mask(sequences: list[Sequence]) -> torch.Tensor:
    position = torch.arange(WIDTH * SIZE)
    return torch.stack([(position >= s.begin) & (position < s.end) for s in sequences])


def prefill(state: ReselectionState, sequences: list[Sequence], chunk: int) -> None:
    """Writes all prompts in chunks of at most `chunk` tokens, ragged across the batch."""
    done = [0] * len(sequences)
    while any(d < s.prompt for d, s in zip(done, sequences, strict=True)):
        rows = [i for i, s in enumerate(sequences) if done[i] < s.prompt]
        part = [sequences[i] for i in rows]
        past = torch.tensor([done[i] for i in rows], dtype=torch.int32)
        for i in rows:
            done[i] = min(done[i] + chunk, sequences[i].prompt)
        lengths = torch.tensor([done[i] for i in rows], dtype=torch.int32)
        write_context(state, tensors(part)[0], past, lengths, visual_mask(part))


def random_state(num_blocks: int, generator: torch.Generator) -> ReselectionState:
    """A state full of the leavings of earlier owners."""
    state = ReselectionState.allocate(num_blocks, SIZE)
    state.scores.copy_(torch.rand(state.scores.shape, generator=generator) * 9)
    state.average.copy_(torch.rand(state.average.shape, generator=generator) * 9)
    state.visual.copy_(torch.rand(state.visual.shape, generator=generator) < 0.5)
    state.keep.copy_(torch.rand(state.keep.shape, generator=generator) < 0.5)
    state.record.copy_(torch.randint(0, 30, state.record.shape, generator=generator))
    return state


def next_scores(last: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scores that sometimes resemble the last ones, so that both sides of the gate occur."""
    fresh = torch.rand(last.shape, generator=generator) ** 4
    stay = torch.rand(len(last), 1, generator=generator) < 0.5
    return torch.where(stay, last + 0.01 * fresh, fresh)


def step(
    state: ReselectionState, sequences: list[Sequence], scores: torch.Tensor, p: float = 0.5,
    **options: object,
) -> Reselection:  # fmt: skip
    return reselect(
        state, *tensors(sequences), scores, keep_table=block_keep_table(p, WIDTH), **options
    )


@given(
    count=st.integers(1, 4),
    chunk=st.integers(1, 40),
    p=st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95]),
    mode=st.sampled_from(GateMode),
    reduce=st.sampled_from(["sum", "max"]),
    memory=st.sampled_from([0.0, 0.3, 0.65]),
    order=st.sampled_from(["raster", "importance"]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_slow_form(
    count: int, chunk: int, p: float, mode: GateMode, reduce: str, memory: float,
    order: str, seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    state = random_state(count * WIDTH, generator)
    sequences = make_sequences(count, generator, count * WIDTH)
    prefill(state, sequences, chunk)
    scores = torch.rand(count, WIDTH * SIZE, generator=generator)
    for _ in range(8):
        for sequence in sequences:
            sequence.length += 1
        scores = next_scores(scores, generator)
        lies = torch.tensor([sequence.holds for sequence in sequences])
        options = {"memory": memory, "order": order}
        got = step(state, sequences, scores.gather(1, lies), p, mode=mode, reduce=reduce, **options)
        for s, sequence in enumerate(sequences):
            decision, dropped = sequence.slow_step(scores[s].tolist(), p, mode, reduce, **options)
            held = torch.arange(WIDTH * SIZE) if got.order is None else got.order[s]
            assert lies[s][held].tolist() == sequence.holds
            used = -(-sequence.length // SIZE)
            attends = sorted(set(range(used)) - dropped)
            assert got.decision[s] == decision
            assert got.keep[s, :used].nonzero()[:, 0].tolist() == attends
            assert got.table[s, : len(attends)].tolist() == [sequence.blocks[b] for b in attends]
            assert got.lengths[s] == sequence.length - SIZE * len(dropped)


def test_p_zero_is_the_identity() -> None:
    generator = torch.Generator().manual_seed(0)
    state, sequences = random_state(30, generator), make_sequences(3, generator, 30)
    prefill(state, sequences, 7)
    for sequence in sequences:
        sequence.length += 1
    scores = torch.rand(3, WIDTH * SIZE)
    moved = step(state, sequences, scores, p=0.0, mode=GateMode.ALWAYS, order="importance")
    assert torch.equal(moved.order, torch.arange(WIDTH * SIZE).expand(3, -1))
    prefill(state, sequences, 7)
    got = step(state, sequences, scores, p=0.0)
    blocks, lengths, _ = tensors(sequences)
    assert torch.equal(got.table, blocks)
    assert torch.equal(got.lengths, lengths)
    assert got.decision.tolist() == [Decision.RESELECT] * 3


def run_alone_and_together(
    order: list[int], relabel: torch.Tensor, seed: int
) -> tuple[list[list[object]], list[list[object]]]:
    """Decisions and logical selections of 4 sequences: one by one, and as a permuted batch."""
    generator = torch.Generator().manual_seed(seed)
    sequences = make_sequences(4, generator, 4 * WIDTH)
    first = torch.rand(4, WIDTH * SIZE, generator=generator)
    all_scores = [first]
    for _ in range(5):
        all_scores.append(next_scores(all_scores[-1], generator))

    def run(group: list[int], blocks: torch.Tensor) -> dict[int, list[object]]:
        members = [
            Sequence(s.prompt, s.begin, s.end, blocks[s.blocks].tolist(), s.prompt)
            for s in (sequences[i] for i in group)
        ]
        state = random_state(4 * WIDTH, torch.Generator().manual_seed(seed + len(group)))
        prefill(state, members, 5)
        log: dict[int, list[object]] = {i: [] for i in group}
        for scores in all_scores:
            for member in members:
                member.length += 1
            got = step(state, members, scores[group])
            for row, i in enumerate(group):
                used = -(-members[row].length // SIZE)
                log[i].append((int(got.decision[row]), got.keep[row, :used].tolist()))
        return log

    identity = torch.arange(4 * WIDTH)
    together = run(order, relabel)
    return [run([i], identity)[i] for i in range(4)], [together[i] for i in range(4)]


@given(
    order=st.permutations(range(4)),
    relabel=st.permutations(range(4 * WIDTH)),
    seed=st.integers(0, 2**31),
)
def test_neighbours_batch_order_and_physical_order_change_nothing(
    order: list[int], relabel: list[int], seed: int
) -> None:
    alone, together = run_alone_and_together(list(order), torch.tensor(relabel), seed)
    assert alone == together


def test_a_recycled_block_remembers_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = make_sequences(2, generator, 20)
    scores = torch.rand(1, WIDTH * SIZE, generator=generator)
    used, fresh = ReselectionState.allocate(20, SIZE), ReselectionState.allocate(20, SIZE)
    prefill(used, [first], 100)
    first.length += 1
    step(used, [first], scores)

    second.blocks = first.blocks[::-1]  # the next request gets the same blocks
    prefill(used, [second], 100)
    prefill(fresh, [second], 100)
    second.length += 1
    options = {"memory": 0.5, "order": "importance"}
    for _ in range(3):
        again, anew = (step(state, [second], scores, **options) for state in (used, fresh))
        for a, b in zip(again, anew, strict=True):
            assert torch.equal(a, b)
        second.length += 1


def test_generated_tokens_are_never_visual_whatever_their_slots_held() -> None:
    state = ReselectionState.allocate(WIDTH, SIZE)
    state.visual.fill_(True)  # marks of an earlier owner
    sequence = Sequence(prompt=9, begin=2, end=7, blocks=list(range(WIDTH)), length=9)
    prefill(state, [sequence], 100)
    for _ in range(12):
        sequence.length += 1
        visual, known = visual_positions(state, *tensors([sequence]))
        assert known.item()
        assert visual[0].nonzero()[:, 0].tolist() == [2, 3, 4, 5, 6]


def test_unknown_rows_pass_through_and_leave_no_trace() -> None:
    generator = torch.Generator().manual_seed(0)
    state = ReselectionState.allocate(30, SIZE)
    sequences = make_sequences(3, generator, 30)
    prefill(state, sequences[:1], 100)  # the second was never seen
    missing = sequences[2]
    missing.prompt, missing.length, missing.begin, missing.end = 20, 20, 2, 18
    blocks, _, _ = tensors([missing])
    for past, upto in ((0, 6), (12, 20)):  # the third lacks the chunk in between
        ends = torch.tensor([upto])
        write_context(state, blocks, torch.tensor([past]), ends, visual_mask([missing]))
    before = state.scores.clone(), state.keep.clone()
    for sequence in sequences:
        sequence.length += 1
    got = step(state, sequences[1:], torch.rand(2, WIDTH * SIZE))
    assert got.decision.tolist() == [Decision.UNKNOWN, Decision.UNKNOWN]
    blocks, lengths, _ = tensors(sequences[1:])
    assert torch.equal(got.table, blocks)
    assert torch.equal(got.lengths, lengths)
    assert torch.equal(state.scores[:-1], before[0][:-1])
    assert torch.equal(state.keep[:-1], before[1][:-1])
    assert step(state, sequences[:1], torch.rand(1, WIDTH * SIZE)).decision.tolist() == [
        Decision.RESELECT
    ]


def test_several_visual_runs() -> None:
    """Two runs with text between them: the block that holds the text is never dropped."""
    state = ReselectionState.allocate(WIDTH, SIZE)
    blocks = torch.arange(WIDTH)[None]
    visual = torch.zeros(1, WIDTH * SIZE, dtype=torch.bool)
    visual[0, 4:12] = visual[0, 14:24] = True  # blocks 1, 2 | mixed 3 | blocks 4, 5
    prompt = torch.tensor([26])
    write_context(state, blocks, torch.tensor([0]), torch.tensor([13]), visual)
    write_context(state, blocks, torch.tensor([13]), prompt, visual)
    got, known = visual_positions(state, blocks, prompt + 1, prompt)
    assert known.all()
    assert torch.equal(got, visual)
    scores = torch.zeros(1, WIDTH * SIZE)
    outcome = reselect(
        state, blocks, prompt + 1, prompt, scores, keep_table=block_keep_table(0.75, WIDTH)
    )
    assert outcome.keep[0, :7].int().tolist() == [1, 1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("mode", GateMode)
def test_nothing_is_read_back_to_the_host(mode: GateMode) -> None:
    # Meta tensors hold no values: reading one, or a shape that depends on one, raises.
    meta = torch.device("meta")
    state = ReselectionState.allocate(8, SIZE, meta)
    blocks = torch.zeros(2, WIDTH, dtype=torch.int32, device=meta)
    lengths = torch.zeros(2, dtype=torch.int32, device=meta)
    mask = torch.zeros(2, WIDTH * SIZE, dtype=torch.bool, device=meta)
    write_context(state, blocks, lengths, lengths, mask)
    visual, _ = visual_positions(state, blocks, lengths, lengths)
    scores = visual_scores(
        torch.zeros(2, 4, 8, device=meta), torch.zeros(2, 2, 8, device=meta),
        torch.zeros(2, WIDTH * SIZE, 2, 8, device=meta), lengths, visual,
    )  # fmt: skip
    table = block_keep_table(0.7, WIDTH).to(meta)
    outcome = reselect(
        state, blocks, lengths, lengths, scores, keep_table=table, mode=mode, memory=0.5,
        order="importance",
    )  # fmt: skip
    assert outcome.table.shape == blocks.shape
    with pytest.raises(RuntimeError):
        outcome.lengths[0].item()
