"""An engine of TensorRT-LLM answers as the native backend does, selects as it does, and says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.decisions import Decision
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo.shapes import HELD_OUT_SEEDS, make_sample
from dycoke_trt.runtime.llm import LlmEngine
from dycoke_trt.runtime.native.load import load_engine
from dycoke_trt.runtime.prompt import PromptBuilder
from dycoke_trt.runtime.request import Event, Request
from dycoke_trt.runtime.resize import resize
from dycoke_trt.runtime.sampling import Sampling
from dycoke_trt.runtime.trtllm.executor_config import executor_request, sampling_config
from dycoke_trt.runtime.vision import OnnxVision
from dycoke_trt.tests.runtime.trtllm.conftest import PRUNED, STOCK, Backend
from dycoke_trt.tests.trtllm_standin import values as bindings
from dycoke_trt.tests.trtllm_standin.build import BLOCK
from torch import Tensor

COUNT, TOKENS = 8, 20
FEW_DIFFER = 1  # of COUNT: 16-bit attention against fp32, where two tokens are nearly as likely
DECISIONS = dict(zip(("full", "reused", "reselected", "unknown"), Decision, strict=True))


@dataclass(frozen=True)
class Question:
    name: str
    prompt: list[int]
    embeddings: Tensor | None


@cache
def questions(bundle: Path) -> list[Question]:
    """About videos of 4 to 16 frames, and every fourth about none."""
    manifest = read_manifest(bundle)
    prompts, vision = PromptBuilder(bundle, manifest), OnnxVision(bundle)
    found = []
    for number, seed in enumerate(HELD_OUT_SEEDS[900_000 : 900_000 + COUNT]):
        sample, name = make_sample(seed), f"q{number}"
        if number % 4 == 3:
            found.append(Question(name, prompts.build(sample.question), None))
            continue
        frames = torch.as_tensor(sample.frames)[: 4 * (1 + number % 4)]
        table = vision(resize(frames, manifest.vision.image_size)[None])[0]
        found.append(Question(name, prompts.build(sample.question, len(table)), table))
    return found


@dataclass
class Answers:
    """What came back, by the name of the question."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    finish: dict[str, str] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        assert event.request_id not in self.finish
        self.tokens.setdefault(event.request_id, []).extend(event.tokens)
        if event.finish is not None:
            self.finish[event.request_id] = event.finish


def ask(
    engine: LlmEngine, asked: Sequence[Question], *, together: bool = True, **options: Any
) -> Answers:
    answers, bundle_ends = Answers(), options.pop("end_ids", frozenset())
    for question in asked:
        engine.submit(
            Request(
                question.name, question.prompt, options.get("max_tokens", TOKENS), answers.take,
                question.embeddings, options.get("sampling", Sampling()), bundle_ends,
                options.get("stop", ()),
            )
        )  # fmt: skip
        if not together:
            while engine.step():
                pass
    while engine.step():
        pass
    return answers


@cache
def expected(bundle: Path, config: DyCokeConfig) -> tuple[Answers, dict[str, int]]:
    """Of the native backend, one by one, and its decisions."""
    engine = load_engine(bundle, config, kv_tokens=8192, tokens_per_block=BLOCK)
    answers = ask(engine, questions(bundle), together=False)
    decisions = engine.selection.decisions
    return answers, {name: decisions[number] for name, number in DECISIONS.items()}


def assert_same(backend: Backend, found: Answers, wanted: Answers) -> None:
    assert found.finish == wanted.finish
    differ = [name for name, tokens in wanted.tokens.items() if found.tokens[name] != tokens]
    assert len(differ) <= (0 if backend.exact else FEW_DIFFER), differ


@pytest.mark.parametrize("config", [PRUNED, STOCK], ids=["pruned", "p = 0, the stock network"])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
def test_tokens_are_those_of_the_native_backend(
    backend: Backend, config: DyCokeConfig, together: bool
) -> None:
    wanted, _ = expected(backend.bundle(config), config)
    with backend.engine(config) as engine:
        found = ask(engine, questions(backend.bundle(config)), together=together)
        assert engine.in_flight() == 0
        assert engine.blocks.free == engine.blocks.num_blocks
    assert_same(backend, found, wanted)


def test_prompts_in_chunks_beside_decoding_rows(backend: Backend) -> None:
    """Prompts of several hundred tokens in steps of 96, so that most steps hold both."""
    bundle = backend.bundle()
    assert max(len(question.prompt) for question in questions(bundle)) > 2 * 96
    with backend.engine(max_num_tokens=96) as engine:
        assert_same(backend, ask(engine, questions(bundle)), expected(bundle, PRUNED)[0])


def test_selections_are_counted_as_the_native_backend_decides(backend: Backend) -> None:
    bundle = backend.bundle()
    _, decisions = expected(bundle, PRUNED)
    assert decisions["reused"] > 0
    assert decisions["reselected"] > 0
    with backend.engine() as engine:
        before = backend.counted()
        ask(engine, questions(bundle))
        counted = backend.counted_at_last(sum(decisions.values()), before)
    assert counted["unknown"] == 0  # eligible rows that were passed through
    allowed = 0 if backend.exact else sum(decisions.values()) // 20
    for name, count in decisions.items():
        assert abs(counted[name] - count) <= allowed, (name, counted, decisions)


def test_answers_end_where_they_should(backend: Backend) -> None:
    """At an end token, which is not delivered, and at a stop sequence, which is not either."""
    bundle = backend.bundle()
    (question,) = questions(bundle)[:1]
    wanted = expected(bundle, PRUNED)[0].tokens[question.name]
    place = next(i for i in range(2, TOKENS) if wanted[i] not in wanted[:i])
    pair = tuple(wanted[place - 1 : place + 1])
    with backend.engine() as engine:
        ended = ask(engine, [question], end_ids=frozenset([wanted[place], 500]))
        stopped = ask(engine, [question], stop=((wanted[place], 510, 511), pair))
        shorter = ask(engine, [question], max_tokens=3)
    assert (ended.tokens[question.name], ended.finish[question.name]) == (wanted[:place], "end")
    assert stopped.tokens[question.name] == wanted[: place - 1]
    assert stopped.finish[question.name] == "stop"
    assert (shorter.tokens[question.name], shorter.finish[question.name]) == (wanted[:3], "length")


def test_seeds_repeat_and_differ(backend: Backend) -> None:
    asked = questions(backend.bundle())[:1]
    hot = {"temperature": 50.0, "top_k": 0, "top_p": 1.0}
    with backend.engine() as engine:
        found = [
            ask(engine, asked, sampling=Sampling(**hot, seed=seed)).tokens[asked[0].name]
            for seed in (1, 1, 2)
        ]
        fresh = [
            ask(engine, asked, sampling=Sampling(**hot)).tokens[asked[0].name] for _ in range(2)
        ]
    assert found[0] == found[1] != found[2]
    assert fresh[0] != fresh[1]


def test_cancelling_frees_what_a_request_holds(backend: Backend) -> None:
    first, second = questions(backend.bundle())[:2]
    answers, begun = Answers(), threading.Event()

    def take(event: Event) -> None:
        answers.take(event)
        begun.set()

    with backend.engine() as engine:
        assert not engine.cancel("nobody")
        for question in (first, second):
            engine.submit(Request(question.name, question.prompt, 600, take, question.embeddings))
        with pytest.raises(DyCokeError, match="in flight already"):
            engine.submit(Request(first.name, first.prompt, 2, take, first.embeddings))
        while not begun.is_set():
            engine.step()
        assert engine.cancel(first.name)
        assert engine.cancel(second.name)
        engine.run_until_idle()
        assert answers.finish == {first.name: "cancelled", second.name: "cancelled"}
        assert engine.in_flight() == 0
        assert engine.blocks.free == engine.blocks.num_blocks
        assert all(len(tokens) < 600 for tokens in answers.tokens.values())
        again = ask(engine, [first])
    assert again.finish[first.name]


BAD: dict[str, tuple[Callable[[Question], Any], str]] = {
    "no prompt": (lambda _: Request("r", [], 2, print), "the prompt is empty"),
    "no tokens": (lambda q: Request("r", q.prompt, 0, print, q.embeddings), "max_tokens=0"),
    "no table": (lambda q: Request("r", q.prompt, 2, print), "0 visual tokens"),
    "too long": (lambda q: Request("r", q.prompt, 9999, print, q.embeddings), "max_tokens 9999"),
    "long prompt": (lambda _: Request("r", [1] * 1300, 2, print), "the prompt has 1300 tokens"),
    "many rows": (
        lambda q: Request("r", q.prompt, 2, print, q.embeddings.repeat(3, 1)),  # type: ignore[union-attr]
        "visual tokens, the engine takes",
    ),
    "top_k": (
        lambda q: Request("r", q.prompt, 2, print, q.embeddings, Sampling(top_k=5000)),
        "top_k=5000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_requests_that_an_engine_cannot_run_are_refused_by_name(
    backend: Backend, case: str
) -> None:
    make, message = BAD[case]
    question = questions(backend.bundle())[2]
    with backend.engine() as engine:
        with pytest.raises(DyCokeError, match=message):
            engine.submit(make(question))
        assert engine.in_flight() == 0


# ---- of the stand-in alone ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["stand-in"], indirect=True)
def test_errors_of_one_request_and_of_the_executor(backend: Backend) -> None:
    first, second = questions(backend.bundle())[:2]
    with backend.engine() as engine:
        answers = Answers()
        sampling = Sampling(top_k=0, seed=13)
        engine.submit(
            Request(first.name, first.prompt, 4, answers.take, first.embeddings, sampling)
        )
        engine.submit(Request(second.name, second.prompt, 4, answers.take, second.embeddings))
        with pytest.raises(RuntimeError, match="the engine could not run it"):
            engine.run_until_idle()
        engine.run_until_idle()
        assert answers.finish == {first.name: "failed", second.name: "length"}

        lost = Answers()
        fatal = Sampling(top_k=0, seed=14)
        engine.submit(Request("a", first.prompt, 4, lost.take, first.embeddings, fatal))
        engine.submit(Request("b", second.prompt, 4, lost.take, second.embeddings))
        with pytest.raises(RuntimeError, match="the executor's thread ended"):
            engine.step()
        assert lost.finish == {"a": "failed", "b": "failed"}
        with pytest.raises(RuntimeError, match="executor failed: the executor's thread ended"):
            engine.submit(Request("c", first.prompt, 4, lost.take, first.embeddings))
        assert not engine.wait_for_work(0)


def test_the_stand_in_takes_no_argument_that_the_bindings_have_not() -> None:
    for wrong in (
        lambda: bindings.KvCacheConfig(block_reuse=False),  # type: ignore[call-arg]
        lambda: bindings.KvCacheConfig(max_tokens=2.5),
        lambda: bindings.SamplingConfig(1, 5),  # type: ignore[misc]
        lambda: bindings.ExecutorConfig(scheduler_config=bindings.KvCacheConfig()),
        lambda: bindings.PromptTuningConfig([[1.0]]),
        lambda: bindings.Request([1], 2, end_id="3"),
        lambda: bindings.Request([1], 2, bindings.SamplingConfig()),  # type: ignore[misc]
    ):
        with pytest.raises(TypeError):
            wrong()


def test_what_a_request_becomes() -> None:
    table = torch.randn(3, 4)
    request = Request(
        "r", [7, 512, 513, 514], 9, print, table,
        Sampling(temperature=0.5, top_k=0, top_p=0.9, seed=2**64 - 1), frozenset([5, 3]), ((8, 9),),
    )  # fmt: skip
    made = executor_request(bindings, request, torch.bfloat16)
    assert made.streaming
    assert (made.end_id, made.stop_words) == (3, [[8, 9], [5]])
    given = made.prompt_tuning_config.embedding_table
    assert torch.equal(given, table.to(torch.bfloat16))
    sampling = made.sampling_config
    assert (sampling.top_k, sampling.top_p, sampling.seed) == (0, 0.9, 2**64 - 1)
    for sampling in (Sampling(temperature=3.0), Sampling(temperature=0.0, top_k=0, seed=1)):
        made = sampling_config(bindings, sampling)
        assert (made.top_k, made.top_p, made.temperature, made.seed) == (1, None, None, None)
