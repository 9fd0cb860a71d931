"""Greedy answers of the recorded network are those of the native backend, token for token.

Requests come while others answer, prompts arrive in chunks beside decoding rows, blocks are used
again as they were left.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from dycoke_trt.bundle.llm_reader import read_llm
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.pool import PoolLayout
from dycoke_trt.runtime.native.cpu import cpu_runner
from dycoke_trt.runtime.native.weights import load_weights
from dycoke_trt.runtime.request import Event, Request
from dycoke_trt.runtime.scheduler import EngineLimits, Scheduler
from dycoke_trt.runtime.selection import SelectionCounts
from dycoke_trt.tests.engines.network.attention import PagedAttention
from dycoke_trt.tests.engines.network.evaluate import evaluate, gemm
from dycoke_trt.tests.engines.network.executor import Executor, Running
from dycoke_trt.tests.engines.network.kernel_plugins import KernelPlugins
from dycoke_trt.tests.engines.network.recording import Recording
from torch import Tensor

FOLDER = Path(os.environ.get("DYCOKE_TEST_NETWORK", "."))
BLOCK, WIDTH, BLOCKS, CHUNK = 8, 16, 22, 23
VISUAL = (52, 37, 0, 45)  # visual tokens of the requests
NEW = (12, 7, 5, 7)  # tokens of the answers: the last request waits for the blocks of the second

Prompt = tuple[list[int], Tensor]


def prompt(seed: int, visual: int, hidden: int, vocab: int) -> Prompt:
    """Words, a run of visual tokens that begins and ends inside a block, words."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(vocab, (9,), generator=generator).tolist()
    ids = words[:5] + list(range(vocab, vocab + visual)) + words[5:]
    return ids, torch.randn(visual, hidden, generator=generator)


def native_answers(
    folder: Path, config: DyCokeConfig, asked: list[Prompt]
) -> tuple[list[list[int]], SelectionCounts]:
    llm, weights = load_weights(folder)
    runner = cpu_runner(llm, weights, len(asked) * WIDTH, BLOCK, config)
    engine = Scheduler(runner, EngineLimits(prefill_chunk=CHUNK))
    answers: dict[str, list[int]] = {str(i): [] for i in range(len(asked))}

    def take(event: Event) -> None:
        answers[event.request_id].extend(event.tokens)

    for name, (ids, embeddings), new in zip(answers, asked, NEW, strict=True):
        engine.submit(Request(name, ids, new, take, embeddings))
    engine.run_until_idle()
    return list(answers.values()), engine.selection


class Engine:
    """The recorded networks of all ranks, each with its part of the KV pool."""

    def __init__(self, folder: Path, layout: PoolLayout, heads: int, *, library: bool) -> None:
        self.networks = [
            Recording.from_bytes(path.read_bytes()) for path in sorted(folder.glob("rank*.engine"))
        ]
        # What nobody wrote must not matter.
        self.pools = [torch.full(layout.shape, float("nan")) for _ in self.networks]
        if library:
            from dycoke_trt.tests.engines.network.library_plugins import LibraryPlugins

            assert len(self.networks) == 1
            self.ours = [LibraryPlugins("one")]
        else:
            self.ours = [KernelPlugins(pool, heads) for pool in self.pools]
        self.plugins = [
            {"GPTAttention": PagedAttention(pool), "Gemm": gemm, **ours.plugins()}
            for pool, ours in zip(self.pools, self.ours, strict=True)
        ]

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        inputs = inputs | {"all_reduce_workspace": torch.zeros(0, dtype=torch.int64)}
        given = [
            {
                name: torch.tensor([[pool.data_ptr(), 0]])
                if name == "host_kv_cache_pool_pointers"
                else inputs[name]
                for name in network.inputs
            }
            for network, pool in zip(self.networks, self.pools, strict=True)
        ]
        return evaluate(self.networks, given, self.plugins)["logits"]


def run(engine: Engine, executor: Executor, asked: list[Prompt]) -> list[Running]:
    """All requests; a new one joins at each step while there are blocks for it."""
    started: list[Running] = []
    shapes = set()
    while len(started) < len(asked) or executor.running:
        if len(started) < len(asked):
            (ids, embeddings), new = asked[len(started)], NEW[len(started)]
            if executor.fits(len(ids) + new):
                started.append(executor.submit(ids, embeddings, new))
        prompts, decodes = executor.step(engine, CHUNK)
        shapes.add((prompts > 0, decodes > 0))
    assert shapes == {(True, False), (True, True), (False, True)}
    return started


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("l[0-9]_p*")))
def test_tokens_equal_the_native_backends(name: str) -> None:
    """name: l1_p0.7, for instance; then -tp2 or -library, if that is meant."""
    checkpoint = read_llm(FOLDER / name / "llm")
    config, rank = checkpoint.dycoke, checkpoint.llm.of_rank(checkpoint.tp)
    asked = [prompt(seed, count, rank.hidden, rank.vocab) for seed, count in enumerate(VISUAL)]
    expected, selection = native_answers(FOLDER / "whole" / "llm", config, asked)
    if config.p > 0:  # else nothing about pruning is shown here
        assert expected != native_answers(FOLDER / "whole" / "llm", DyCokeConfig.off(), asked)[0]

    layout = PoolLayout(BLOCKS, rank.layers, rank.kv_heads, BLOCK, rank.head_dim)
    library = name.endswith("-library")
    engine = Engine(FOLDER / name / "engine", layout, rank.heads, library=library)
    assert len(engine.networks) == checkpoint.tp
    answered = run(engine, Executor(layout, WIDTH, seed=1), asked)
    assert [request.tokens for request in answered] == expected

    for ours in engine.ours:
        full, reused, reselected, unknown, *moves = ours.counts()
        assert moves == [selection.reorders, selection.moved]
        assert (selection.moved > 0) == (config.order == "importance")
        if config.p == 0:
            assert (full, reused, reselected, unknown) == (0, 0, 0, 0)
        else:
            assert full == unknown == 0  # the gate is `reuse`
            assert reused + reselected == sum(NEW) - len(NEW)
            assert reselected > len(asked)  # each request's first step, and more
            assert reused > 0
