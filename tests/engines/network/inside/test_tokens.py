"""Greedy answers of the recorded network are those of the native backend, token for token.

Requests come while others answer, prompts arrive in chunks beside decoding rows, blocks are used
again as they were left.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.pool import PoolLayout
from dycoke_trt.runtime.native.engine import EngineLimits, NativeEngine
from dycoke_trt.runtime.native.model import Qwen2
from dycoke_trt.runtime.native.request import Event, Request
from dycoke_trt.runtime.native.weights import load_weights
from dycoke_trt.tests.engines.network.attention import PagedAttention
from dycoke_trt.tests.engines.network.evaluate import evaluate, gemm
from dycoke_trt.tests.engines.network.executor import Executor, Running
from dycoke_trt.tests.engines.network.kernel_plugins import KernelPlugins
from dycoke_trt.tests.engines.network.recording import Recording
from torch import Tensor

FOLDER = Path(os.environ.get("DYCOKE_TEST_NETWORK", "."))
WAYS = ["kernels", "library"] if "DYCOKE_TEST_PLUGIN" in os.environ else ["kernels"]
BLOCK, WIDTH, BLOCKS, CHUNK, NEW = 8, 16, 40, 29, 12


def prompt(seed: int, visual: int, hidden: int, vocab: int) -> tuple[list[int], Tensor]:
    """Words, a run of visual tokens that begins and ends inside a block, words."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(vocab, (9,), generator=generator).tolist()
    ids = words[:5] + list(range(vocab, vocab + visual)) + words[5:]
    return ids, torch.randn(visual, hidden, generator=generator)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("l*_p*")))
def test_tokens_equal_the_native_backends(name: str, way: str) -> None:
    network = Recording.from_bytes((FOLDER / name / "engine" / "rank0.engine").read_bytes())
    config = DyCokeConfig(l=int(name[1]), p=float(name[4:]))
    llm, weights = load_weights(FOLDER / name / "llm")
    asked = [prompt(seed, visual, llm.hidden, llm.vocab) for seed, visual in enumerate((70, 45, 0, 61))]

    layout = PoolLayout(BLOCKS, llm.layers, llm.kv_heads, BLOCK, llm.head_dim)
    pool = torch.full(layout.shape, float("nan"))  # what nobody wrote must not matter
    if way == "library":
        from dycoke_trt.tests.engines.network.library_plugins import LibraryPlugins

        ours: KernelPlugins | LibraryPlugins = LibraryPlugins("one")
    else:
        ours = KernelPlugins(pool, llm.heads)
    plugins = {"GPTAttention": PagedAttention(pool), "Gemm": gemm, **ours.plugins()}

    def engine(inputs: dict[str, Tensor]) -> Tensor:
        return evaluate(network, inputs, plugins)["logits"]

    executor = Executor(pool, WIDTH, seed=1)
    started: list[Running] = []
    shapes = set()
    while len(started) < len(asked) or executor.running:
        while len(started) < len(asked) and executor.fits(len(asked[len(started)][0]) + NEW):
            started.append(executor.submit(*asked[len(started)], NEW))
            if len(started) > 1:
                break  # one more each step: prompts beside answers
        prompts, decodes = executor.step(engine, CHUNK)
        shapes.add((prompts > 0, decodes > 0))
        for request in list(executor.running):
            if len(request.tokens) == NEW:
                executor.finish(request)
    assert shapes >= {(True, False), (True, True), (False, True)}

    answers: dict[str, list[int]] = {}
    native = NativeEngine(
        Qwen2(llm, weights, 4 * WIDTH, BLOCK), config, EngineLimits(prefill_chunk=CHUNK)
    )
    for i, (ids, embeddings) in enumerate(asked):
        answers[str(i)] = []

        def take(event: Event) -> None:
            answers[event.request_id].extend(event.tokens)

        native.submit(Request(str(i), ids, NEW, take, embeddings))
    native.run_until_idle()
    assert [request.tokens for request in started] == list(answers.values())
    full, reused, reselected, unknown = ours.counts()
    assert unknown == 0
    if config.p > 0:
        assert full == 0  # gate `reuse`
        assert min(reused, reselected) > 0
