"""Continuous batching: what neighbours, waiting and recycled blocks must not change."""

from __future__ import annotations

import threading

import pytest
import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError, QueueFullError
from dycoke_trt.runtime.scheduler import EngineLimits
from dycoke_trt.tests.runtime.tiny import VOCAB, video_prompt

PRUNED = DyCokeConfig(l=2, p=0.5)
CONFIGS = {
    "off": DyCokeConfig.off(),
    "block": PRUNED,
    "block, max, l=0": DyCokeConfig(l=0, p=0.7, block_reduce="max"),
    "token, full": DyCokeConfig(l=1, p=0.5, granularity="token", gate="full"),
}


def submit(client, name: str, seed: int, max_tokens: int = 12, **options) -> None:
    ids, embeddings = video_prompt(seed, visual=20 + seed % 9, text=4 + seed % 5)
    client.submit(name, ids, max_tokens, embeddings=embeddings, **options)


@pytest.mark.parametrize("name", CONFIGS)
def test_sixteen_together_are_sixteen_alone(make_client, name: str) -> None:
    config = CONFIGS[name]
    together = make_client(config, blocks=256)
    for seed in range(16):
        submit(together, f"r{seed}", seed)
    together.engine.run_until_idle()
    for seed in range(16):
        alone = make_client(config, blocks=16)
        submit(alone, "r", seed)
        alone.engine.run_until_idle()
        assert together.tokens(f"r{seed}") == alone.tokens("r")
        assert together.finish(f"r{seed}") == "length"
    assert together.engine.blocks.free == 256
    assert together.engine.in_flight() == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_an_empty_table_is_none(make_client, name: str) -> None:
    """A request of text alone may carry a table without rows; its neighbour answers on."""
    answers = []
    for table in (None, torch.empty(0, 32)):
        client = make_client(CONFIGS[name])
        client.submit("text", [3, 1, 4, 1, 5], embeddings=table)
        submit(client, "video", 1)
        client.engine.run_until_idle()
        answers.append([client.tokens("text"), client.tokens("video")])
    assert answers[0] == answers[1]
    assert all(answers[0])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk", [1, 5, 13])
def test_chunked_prefill_changes_nothing(make_client, name: str, chunk: int) -> None:
    answers = []
    for size in (2048, chunk):
        client = make_client(CONFIGS[name], limits=EngineLimits(prefill_chunk=size))
        for seed in (1, 2):
            submit(client, f"r{seed}", seed)
        client.engine.run_until_idle()
        answers.append([client.tokens("r1"), client.tokens("r2")])
    assert answers[0] == answers[1]


def test_several_prompts_share_a_steps_prefill_tokens(make_client) -> None:
    client = make_client(limits=EngineLimits(prefill_chunk=10))
    for i, length in enumerate((4, 5, 6, 1)):
        client.submit(f"r{i}", [i + 1] * length, 9)
    client.engine.step()  # 4 of the first; the shortest, 1 and 5
    assert [len(client.tokens(f"r{i}")) for i in range(4)] == [1, 1, 0, 1]
    client.engine.step()
    assert [len(client.tokens(f"r{i}")) for i in range(4)] == [2, 2, 1, 2]


def test_a_long_prompt_neither_delays_a_short_one_nor_starves(make_client) -> None:
    client = make_client(limits=EngineLimits(prefill_chunk=4, max_batch=2))
    client.submit("long", [1] * 21, 1)
    client.engine.step()  # 4 of 21
    for i in range(20):
        if client.tokens("long"):
            break
        client.submit(f"short{i}", [2] * 2, 1)
        client.engine.step()
        assert len(client.tokens(f"short{i}")) == 1
    assert i == 9  # 2 of 17 tokens in each step


def test_state_never_leaks_through_recycled_blocks(make_client) -> None:
    expected = []
    for seed in range(6):
        fresh = make_client(PRUNED, blocks=13)
        submit(fresh, "r", seed)
        fresh.engine.run_until_idle()
        expected.append(fresh.tokens("r"))
    used = make_client(PRUNED, blocks=13)  # room for one request: each reuses all blocks
    for seed in range(6):
        submit(used, f"r{seed}", seed)
    used.engine.run_until_idle()
    assert [used.tokens(f"r{seed}") for seed in range(6)] == expected


def test_a_request_that_must_wait_waits_and_is_not_overtaken(make_client) -> None:
    client = make_client(blocks=20, limits=EngineLimits(max_batch=4))
    client.submit("long", [1] * 40, 8)  # 12 of 20 blocks
    client.submit("too long for now", [2] * 40, 8)
    client.submit("short", [3], 3)  # would fit, but came later
    client.engine.step()
    assert client.engine.blocks.free == 8
    assert client.engine.waiting() == 2
    client.engine.run_until_idle()
    assert [client.finish(n) for n in client.events] == ["length"] * 3
    assert client.engine.blocks.free == 20


def test_cancelling(make_client) -> None:
    client = make_client(PRUNED, blocks=32, limits=EngineLimits(max_batch=2))
    for seed, name in enumerate(("running", "stays", "queued")):
        submit(client, name, seed, max_tokens=10)
    client.engine.step()
    client.engine.step()
    assert client.engine.cancel("running")
    assert client.engine.cancel("queued")
    assert not client.engine.cancel("nobody")
    before = client.engine.blocks.free
    client.engine.step()
    assert client.engine.blocks.free > before
    assert client.finish("running") == client.finish("queued") == "cancelled"
    assert client.tokens("queued") == []
    client.engine.run_until_idle()
    assert client.finish("stays") == "length"
    assert client.engine.blocks.free == 32
    alone = make_client(PRUNED)
    submit(alone, "r", 1, max_tokens=10)
    alone.engine.run_until_idle()
    assert client.tokens("stays") == alone.tokens("r")
    assert not client.engine.cancel("running")  # its id is free again
    client.submit("running", [1], 1)


def test_refusals_leave_nothing_behind(make_client) -> None:
    client = make_client(blocks=4, limits=EngineLimits(max_queue=2))
    cases = [
        (([], 3), "the prompt is empty"),
        (([1], 0), "max_tokens=0"),
        (([1], 10**6), "positions"),
        (([1] * 10, 7), "need 5 KV blocks, the pool has 4"),
        (([VOCAB], 1), f"token id {VOCAB}"),
        (([-1], 1), "token id -1"),
    ]
    for (prompt, max_tokens), message in cases:
        with pytest.raises(DyCokeError, match=message) as error:
            client.submit("r", prompt, max_tokens)
        assert "\n" not in str(error.value)
    with pytest.raises(DyCokeError, match="empty stop"):
        client.submit("r", [1], 1, stop=((),))
    client.submit("a", [1], 1)
    with pytest.raises(DyCokeError, match="'a' is in flight"):
        client.submit("a", [1], 1)
    client.submit("b", [1], 1)
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        client.submit("c", [1], 1)
    assert client.engine.in_flight() == 2
    client.engine.run_until_idle()
    assert client.engine.blocks.free == 4


def test_submitting_from_other_threads(make_client) -> None:
    client = make_client(PRUNED, blocks=128)
    threads = [
        threading.Thread(target=submit, args=(client, f"r{seed}", seed)) for seed in range(12)
    ]
    for thread in threads:
        thread.start()
    assert client.engine.wait_for_work(timeout=60)
    while any(thread.is_alive() for thread in threads) or client.engine.in_flight():
        client.engine.step()
    assert all(client.finish(f"r{seed}") == "length" for seed in range(12))
    assert client.engine.blocks.free == 128
