"""A fault in what belongs to one request ends that request, and changes no neighbour's token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import TimeLimitError, UnavailableError
from dycoke_trt.runtime import steps
from dycoke_trt.runtime.request import Event, Request
from dycoke_trt.runtime.sampling import Sampling, sample
from dycoke_trt.runtime.scheduler import EngineLimits, Scheduler
from dycoke_trt.tests.runtime.tiny import Client, model_runner, video_prompt

CONFIGS = {
    "off": DyCokeConfig.off(),
    "block": DyCokeConfig(l=2, p=0.5),
    "token, full": DyCokeConfig(l=1, p=0.5, granularity="token", gate="full"),
}
SAMPLED = Sampling(temperature=1.1, top_k=0, seed=3)
NEIGHBOURS = {"before": None, "greedy": None, "sampled": SAMPLED, "after": SAMPLED}


@dataclass
class Fault:
    """A request that goes wrong; after: the tokens that reached its owner before it did."""

    error: type[Exception]
    match: str
    change: Callable[[Request], Request] = lambda request: request
    poison: int = 0  # the step before which NaN comes into its part of the KV pool
    after: int = 0


class Callback:
    """Keeps events as Client does, and raises at the one with that number."""

    def __init__(self, number: int) -> None:
        self.events: list[Event] = []
        self._number = number

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) == self._number:
            raise KeyError("the owner's own fault")


def _embedded(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Request], Request]:
    return lambda request: replace(request, embeddings=make(_table(request)))


def _table(request: Request) -> torch.Tensor:
    assert request.embeddings is not None
    return request.embeddings


def _broken_sampling(request: Request) -> Request:
    return replace(request, sampling=Sampling(temperature=0.5, top_k=7, seed=0))


FAULTS = {
    "another width": Fault(RuntimeError, "size", _embedded(lambda table: table[:, :-1])),
    "NaN": Fault(FloatingPointError, "nan", _embedded(lambda table: table * torch.nan)),
    "one NaN, sampled": Fault(
        FloatingPointError,
        "nan",
        lambda request: replace(
            _embedded(lambda table: table.index_fill(0, torch.tensor([3]), torch.nan))(request),
            sampling=SAMPLED,
        ),
    ),
    "infinite": Fault(FloatingPointError, "nan", _embedded(lambda table: table + torch.inf)),
    "NaN while decoding": Fault(FloatingPointError, "nan", poison=2, after=2),
    "sampling": Fault(ZeroDivisionError, "planted", _broken_sampling),
    "callback, first": Fault(KeyError, "own", lambda r: replace(r, on_event=Callback(1)), after=1),
    "callback, third": Fault(KeyError, "own", lambda r: replace(r, on_event=Callback(3)), after=3),
}


@dataclass
class Run:
    """An engine driven to its end."""

    client: Client
    errors: list[Exception] = field(default_factory=list)

    def drive(self, steps: int | None = None) -> Run:
        engine = self.client.engine
        while engine.in_flight() and steps != 0:
            steps = None if steps is None else steps - 1
            try:
                engine.step()
            except Exception as error:
                self.errors.append(error)
        return self


def _request(client: Client, name: str, seed: int, sampling: Sampling | None = None) -> Request:
    ids, embeddings = video_prompt(seed, visual=20 + seed, text=4 + seed)
    client.events[name] = []
    return Request(
        name, ids, 8, client.events[name].append, embeddings, sampling or Sampling()
    )  # fmt: skip


def _neighbours(client: Client) -> dict[str, Request]:
    return {
        name: _request(client, name, seed, sampling)
        for seed, (name, sampling) in enumerate(NEIGHBOURS.items())
    }


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_its_own_request_alone(
    make_client: Callable[..., Client],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    config: str,
) -> None:
    fault = FAULTS[name]

    def planted(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
        if sampling.top_k == 7:
            raise ZeroDivisionError("planted")
        return sample(logits, sampling, generator)

    monkeypatch.setattr(steps, "sample", planted)
    client = make_client(CONFIGS[config], blocks=256)
    engine, run = client.engine, Run(client)
    requests = _neighbours(client)
    bad = fault.change(_request(client, "bad", 9))
    for request in [requests.pop("before"), bad, *requests.values()]:
        engine.submit(request)
    if fault.poison:
        run.drive(fault.poison)
        model_runner(engine).cache.pool[_blocks(engine, "bad")] = torch.nan
    run.drive()

    (error,) = run.errors
    assert isinstance(error, fault.error)
    assert fault.match in str(error)
    events = bad.on_event.events if isinstance(bad.on_event, Callback) else client.events["bad"]
    assert [event.finish for event in events] == [None] * fault.after + ["failed"]
    assert events[-1].error is error
    for seed, (neighbour, sampling) in enumerate(NEIGHBOURS.items()):
        alone = make_client(CONFIGS[config])
        alone.engine.submit(_request(alone, "r", seed, sampling))
        alone.engine.run_until_idle()
        assert client.tokens(neighbour) == alone.tokens("r") != []
        assert client.finish(neighbour) == "length"
    assert engine.blocks.free == 256
    assert engine.in_flight() == 0


def _blocks(engine: Scheduler, name: str) -> list[int]:
    return next(s.blocks for s in engine._running if s.request.request_id == name)


def test_a_callback_that_raises_on_the_last_event_is_reported_once(
    make_client: Callable[..., Client],
) -> None:
    client = make_client()
    run, callback = Run(client), Callback(8)
    client.submit("good", [1, 2], 9)
    client.engine.submit(Request("bad", [3], 8, callback))
    run.drive()
    assert [event.finish for event in callback.events] == [None] * 7 + ["length"]
    assert [type(error) for error in run.errors] == [KeyError]
    assert client.finish("good") == "length"
    assert client.engine.blocks.free == client.engine.blocks.num_blocks


def test_several_faults_in_one_step_are_all_reported(make_client: Callable[..., Client]) -> None:
    client = make_client()
    run = Run(client)
    for name in ("one", "two"):
        client.engine.submit(Request(name, [3], 8, Callback(2)))
    run.drive()
    (group,) = run.errors
    assert isinstance(group, ExceptionGroup)
    assert len(group.exceptions) == 2


@pytest.mark.parametrize("config", CONFIGS)
def test_what_others_left_in_the_pool_is_never_read(
    make_client: Callable[..., Client], config: str
) -> None:
    """Blocks are recycled as they are: whatever lies in them, no answer depends on it."""
    answers = []
    for left in (0.0, torch.nan, torch.inf):
        client = make_client(
            CONFIGS[config], blocks=64, limits=EngineLimits(max_batch=3, prefill_chunk=7)
        )
        model_runner(client.engine).cache.pool.fill_(left)
        for request in _neighbours(client).values():
            client.engine.submit(request)
        client.engine.run_until_idle()
        answers.append([client.tokens(name) for name in NEIGHBOURS])
    assert answers[0] == answers[1] == answers[2]
    assert all(answers[0])


def test_the_line_goes_on_after_a_batch_that_failed(
    make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(limits=EngineLimits(max_batch=2))
    run, decode = Run(client), client.engine.runner.decode
    for name in ("a", "b", "waits"):
        client.submit(name, [1], 5)
    monkeypatch.setattr(client.engine.runner, "decode", _raises)
    run.drive(2)
    monkeypatch.setattr(client.engine.runner, "decode", decode)
    run.drive()
    assert [client.finish(name) for name in ("a", "b", "waits")] == ["failed", "failed", "length"]
    assert len(run.errors) == 1
    assert client.events["a"][-1].error is client.events["b"][-1].error is run.errors[0]


def _raises(*_: object) -> torch.Tensor:
    raise RuntimeError("broken")


def test_time_limits(make_client: Callable[..., Client]) -> None:
    """What waits or answers for too long ends with a reason, as no error of the engine."""
    client = make_client(limits=EngineLimits(max_batch=1))
    engine = client.engine
    client.submit("runs", [1], 9)
    client.submit("waits", [2], 9)
    engine.step()
    engine.limits = replace(engine.limits, wait_seconds=1e-9)
    engine.step()
    assert client.finish("waits") == "failed"
    assert "in line for more than 1e-09 s" in str(client.events["waits"][-1].error)
    assert client.finish("runs") is None
    engine.limits = replace(engine.limits, answer_seconds=1e-9)
    engine.step()
    late = client.events["runs"][-1].error
    assert isinstance(late, TimeLimitError)
    assert isinstance(late, UnavailableError)
    assert "of max_tokens 9" in str(late)
    assert engine.in_flight() == 0
    assert engine.blocks.free == engine.blocks.num_blocks


def test_a_failing_step_ends_every_running_request(make_client, monkeypatch) -> None:
    client = make_client()
    client.submit("a", [1], 5)
    client.submit("b", [2], 5)
    client.engine.step()

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("broken")

    monkeypatch.setattr(client.engine.runner, "decode", broken)
    with pytest.raises(RuntimeError, match="broken"):
        client.engine.step()
    assert client.finish("a") == client.finish("b") == "failed"
    assert client.engine.blocks.free == client.engine.blocks.num_blocks
    assert client.engine.in_flight() == 0
