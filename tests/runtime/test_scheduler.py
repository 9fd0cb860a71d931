"""The scheduler over a runner that only counts: who is served when, and what a fault may touch."""

from __future__ import annotations

import pytest
import torch
from dycoke_trt.core.errors import DyCokeError, QueueFullError
from dycoke_trt.core.pool import PoolLayout
from dycoke_trt.runtime.request import Event, Request
from dycoke_trt.runtime.scheduler import EngineLimits, Scheduler
from dycoke_trt.runtime.selection import SelectionCounts, StepTrace, Trace
from dycoke_trt.runtime.steps import Chunk, Lane, StepLogits
from hypothesis import given
from hypothesis import strategies as st

VOCAB, BLOCK = 100, 4


def following(token: int, length: int) -> int:
    """What the model of these tests says after `token` in a context of `length` tokens."""
    return (7 * token + length) % VOCAB


class CountingRunner:
    """Computes `following`, keeps what it was asked, and fails on tokens in `broken`."""

    vocab, max_positions = VOCAB, 1000

    def __init__(self, num_blocks: int = 64) -> None:
        self.layout = PoolLayout(num_blocks, 1, 1, BLOCK, 8)
        self.selection = SelectionCounts()
        self.chunks: list[Chunk] = []
        self.steps: list[list[Lane]] = []
        self.broken: set[int] = set()

    def prefill(self, chunk: Chunk) -> StepLogits | None:
        self._check(chunk.ids)
        self.chunks.append(chunk)
        length = chunk.past + len(chunk.ids)
        return self._logits([following(chunk.ids[-1], length)]) if chunk.last else None

    def decode(self, lanes: list[Lane], trace: Trace | None = None) -> StepLogits:
        self._check([lane.token for lane in lanes])
        self.steps.append(lanes)
        if trace is not None:
            for row, lane in enumerate(lanes):
                trace(row, StepTrace(lane.token, 0.0, torch.empty(0), torch.empty(0)))
        return self._logits([following(lane.token, lane.length) for lane in lanes])

    def _check(self, tokens: list[int]) -> None:
        if bad := self.broken & set(tokens):
            raise ArithmeticError(f"token {bad.pop()}")

    @staticmethod
    def _logits(tokens: list[int]) -> StepLogits:
        return StepLogits(torch.nn.functional.one_hot(torch.tensor(tokens), VOCAB).float())


class Client:
    def __init__(self, num_blocks: int = 64, **limits: float) -> None:
        self.runner = CountingRunner(num_blocks)
        self.traced: list[tuple[str, int]] = []
        self.scheduler = Scheduler(
            self.runner,
            EngineLimits(**limits),  # type: ignore[arg-type]
            lambda name, step: self.traced.append((name, step.decision)),
        )
        self.events: dict[str, list[Event]] = {}

    def submit(self, name: str, prompt: list[int], max_tokens: int = 3) -> None:
        events: list[Event] = []
        self.scheduler.submit(Request(name, prompt, max_tokens, events.append))
        self.events[name] = events

    def tokens(self, name: str) -> list[int]:
        return [token for event in self.events[name] for token in event.tokens]

    def finishes(self) -> dict[str, str | None]:
        return {name: events[-1].finish if events else None for name, events in self.events.items()}


def answer(prompt: list[int], count: int) -> list[int]:
    """What a request alone gets."""
    tokens = [following(prompt[-1], len(prompt))]
    while len(tokens) < count:
        tokens.append(following(tokens[-1], len(prompt) + len(tokens)))
    return tokens


def test_prompts_go_in_chunks_and_lanes_carry_the_newest_token() -> None:
    client = Client(prefill_chunk=5)
    client.submit("long", list(range(1, 9)), 3)
    client.submit("short", [9, 10], 3)
    client.scheduler.run_until_idle()
    assert [(c.ids, c.past, c.last) for c in client.runner.chunks] == [
        ([9, 10], 0, True), ([1, 2, 3], 0, False), ([4, 5, 6, 7, 8], 3, True),
    ]  # fmt: skip
    long, short = answer(list(range(1, 9)), 3), answer([9, 10], 3)
    assert (client.tokens("long"), client.tokens("short")) == (long, short)
    assert [[(x.token, x.length, x.prompt_length) for x in s] for s in client.runner.steps] == [
        [(short[0], 3, 2)], [(long[0], 9, 8), (short[1], 4, 2)], [(long[1], 10, 8)],
    ]  # fmt: skip
    # Graphs compare a lane's list of blocks by identity: it is one object for a sequence's life.
    _, first, second = client.runner.steps
    assert first[0].blocks is second[0].blocks is client.runner.chunks[1].blocks
    assert not set(first[0].blocks) & set(first[1].blocks)


def test_nobody_overtakes_who_waits_for_blocks() -> None:
    client = Client(num_blocks=4, max_batch=4)
    client.submit("runs", [1] * 6, 5)  # 3 of 4 blocks
    client.submit("large", [2] * 5, 3)  # 2 blocks
    client.submit("small", [3], 1)  # 1 block would do
    client.scheduler.step()
    assert client.scheduler.waiting() == 2
    client.scheduler.run_until_idle()
    # Both leave the line in one step, where the shorter prompt goes first.
    assert [chunk.ids[0] for chunk in client.runner.chunks] == [1, 3, 2]
    assert client.scheduler.blocks.free == 4


def test_a_fault_of_a_prompt_is_its_own_and_a_fault_of_a_step_is_everybodys() -> None:
    client = Client()
    scheduler = client.scheduler
    client.submit("good", [1, 2], 9)
    client.submit("bad", [50], 9)
    client.runner.broken = {50}
    with pytest.raises(ArithmeticError, match="token 50"):
        scheduler.step()
    assert client.finishes() == {"good": None, "bad": "failed"}
    client.submit("beside", [3], 9)
    scheduler.step()
    client.runner.broken = {client.tokens("good")[-1]}
    with pytest.raises(ArithmeticError):
        scheduler.step()
    assert set(client.finishes().values()) == {"failed"}
    assert scheduler.blocks.free == scheduler.blocks.num_blocks
    client.runner.broken = set()
    client.submit("after", [4], 2)
    scheduler.run_until_idle()
    assert client.tokens("after") == answer([4], 2)


def test_traces_are_of_the_request_in_that_lane() -> None:
    client = Client()
    for name, token in (("a", 5), ("b", 6)):
        client.submit(name, [token], 2)
    client.scheduler.run_until_idle()
    assert client.traced == [("a", answer([5], 1)[0]), ("b", answer([6], 1)[0])]


def test_what_is_refused_leaves_nothing_behind() -> None:
    client = Client(num_blocks=4, max_queue=1)
    for prompt, most in (([], 1), ([VOCAB], 1), ([1], 0), ([1] * 17, 1), ([1] * 999, 2)):
        with pytest.raises(DyCokeError):
            client.submit("never", prompt, most)
    client.submit("waits", [1])
    with pytest.raises(DyCokeError, match="in flight already"):
        client.submit("waits", [1])
    with pytest.raises(QueueFullError):
        client.submit("never", [1])
    assert client.scheduler.in_flight() == 1
    client.scheduler.run_until_idle()
    assert client.finishes() == {"waits": "length"}


ACTION = st.tuples(
    st.sampled_from(["submit", "step", "step", "cancel", "break"]),
    st.integers(0, 7), st.integers(1, 12), st.integers(1, 6),
)  # fmt: skip


@given(st.lists(ACTION, max_size=40))
def test_every_request_ends_once_and_every_block_comes_back(
    actions: list[tuple[str, int, int, int]],
) -> None:
    """Random submissions, cancellations and faults; tokens of who was not hit are as alone."""
    client = Client(num_blocks=8, max_batch=3, max_queue=4, prefill_chunk=6)
    scheduler = client.scheduler
    asked: dict[str, tuple[list[int], int]] = {}
    for action, which, length, most in actions:
        client.runner.broken = {which} if action == "break" else set()
        if action == "submit":
            name, prompt = str(len(asked)), [which + i for i in range(length)]
            try:
                client.submit(name, prompt, most)
            except QueueFullError:
                continue
            asked[name] = prompt, most
        elif action == "cancel":
            scheduler.cancel(str(which))
        else:
            try:
                scheduler.step()
            except (ArithmeticError, ExceptionGroup):
                assert action == "break"
        if client.runner.steps:
            lanes = client.runner.steps[-1]
            assert len(lanes) <= 3
            owned = [block for lane in lanes for block in lane.blocks]
            assert len(owned) == len(set(owned))
    client.runner.broken = set()
    scheduler.run_until_idle()
    assert scheduler.blocks.free == 8
    assert scheduler.in_flight() == scheduler.waiting() == 0
    for name, (prompt, most) in asked.items():
        finishes = [event.finish for event in client.events[name]]
        assert finishes.count(None) == len(finishes) - 1
        assert finishes[-1] is not None
        tokens, alone = client.tokens(name), answer(prompt, most)
        assert tokens == alone[: len(tokens)]
        assert (finishes[-1] == "length") == (tokens == alone)
