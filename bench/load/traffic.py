"""Load on a running server over gRPC: closed loop or Poisson arrivals, latencies and rates.

TTFT is the time to the first response with tokens; inter-token latency the time between responses
with tokens, over the tokens of the later one; goodput the rate of answers whose first token came
within a limit. Times are seconds.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import DyCokeError
from ...runtime.client import request_tensor
from ..profile.summary import percentile
from .workload import Question


@dataclass
class Sent:
    """One request. error: "" where it was answered to its end, or cancelled on purpose."""

    sent: float
    first: float | None = None
    total: float = 0.0
    tokens: int = 0
    gaps: list[float] = field(default_factory=list)
    error: str = ""
    cancelled: bool = False

    @property
    def outcome(self) -> str:
        """answered, cancelled or error."""
        return "error" if self.error else "cancelled" if self.cancelled else "answered"


@dataclass(frozen=True)
class Load:
    """requests: how many; concurrency: in flight at once in a closed loop; rate: instead of it,
    arrivals per second of a Poisson process; seed: of the arrivals."""

    requests: int
    concurrency: int = 1
    rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1 or self.concurrency < 1:
            raise DyCokeError(
                f"requests={self.requests}, concurrency={self.concurrency} is not allowed; "
                "allowed: integers >= 1"
            )
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise DyCokeError(f"rate={self.rate} is not allowed; allowed: a number > 0")

    @property
    def name(self) -> str:
        return f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g} per s"


async def run_load(
    server: str,
    model: str,
    load: Load,
    questions: Sequence[Question],
    done: list[Sent],
    on_done: Callable[[], None] = lambda: None,
) -> float:
    """Sends the requests; returns the seconds from the first one to the last answer.

    questions: asked in turn, from the first again after the last. done: gets each request as it
    ends, so that what is there when this is cancelled can be kept.
    """
    from tritonclient.grpc.aio import InferenceServerClient

    begun = time.perf_counter()
    numbers = iter(range(load.requests))
    async with InferenceServerClient(server) as client, asyncio.TaskGroup() as tasks:

        async def send(i: int) -> None:
            done.append(await _ask(client, model, questions[i % len(questions)], begun))
            on_done()

        async def one_after_the_other() -> None:
            for i in numbers:
                await send(i)

        if load.rate is None:
            for _ in range(load.concurrency):
                tasks.create_task(one_after_the_other())
        else:
            draw, due = random.Random(load.seed), begun
            for i in numbers:
                await asyncio.sleep(due - time.perf_counter())
                tasks.create_task(send(i))
                due += draw.expovariate(load.rate)
    return time.perf_counter() - begun


async def _ask(client: Any, model: str, question: Question, begun: float) -> Sent:
    """One streamed request; every failure of the server or the connection becomes its error."""
    import grpc
    from tritonclient.utils import InferenceServerException

    inputs = [request_tensor(name, value) for name, value in question.values.items()]

    async def messages() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": model,
            "inputs": inputs,
            "request_id": uuid.uuid4().hex,
            "enable_empty_final_response": True,
        }

    start = before = time.perf_counter()
    request = Sent(start - begun)
    responses = 0
    try:
        stream = client.stream_infer(messages())
        async for result, error in stream:
            if error is not None:
                request.error = error.message()
                break
            count = result.as_numpy("num_output_tokens")
            tokens = 0 if count is None else int(count.reshape(-1)[0])
            now = time.perf_counter()
            if tokens:
                if request.first is None:
                    request.first = now - start
                else:
                    request.gaps += [(now - before) / tokens] * tokens
                before = now
                request.tokens += tokens
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
            responses += 1
            if responses == question.cancel_after:
                request.cancelled = stream.cancel()
                break
    except InferenceServerException as error:
        request.error = error.message()
    except grpc.RpcError as error:
        request.error = f"connection: {error.details()}"
    request.total = time.perf_counter() - start
    return request


def summarise_load(
    done: Sequence[Sent], seconds: float, ttft_limit: float | None = None
) -> dict[str, Any]:
    """Percentiles over answered requests, and rates. ttft_limit: of goodput."""
    good = [request for request in done if request.outcome == "answered"]
    errors: dict[str, int] = {}
    for request in done:
        if request.error:
            errors[request.error] = errors.get(request.error, 0) + 1
    firsts = [r.first for r in good if r.first is not None]
    in_time = None if ttft_limit is None else sum(first <= ttft_limit for first in firsts)
    return {
        "sent": len(done),
        "answered": len(good),
        "cancelled": sum(request.outcome == "cancelled" for request in done),
        "errors": errors,
        "seconds": seconds,
        "requests_per_second": len(good) / seconds,
        "tokens_per_second": sum(request.tokens for request in good) / seconds,
        "goodput": None if in_time is None else in_time / seconds,
        "in_time": None if in_time is None else in_time / len(done),
        "ttft": _percentiles(firsts),
        "inter_token": _percentiles([gap for r in good for gap in r.gaps]),
        "end_to_end": _percentiles([r.total for r in good]),
    }


def _percentiles(values: list[float]) -> dict[str, float] | None:
    ordered = sorted(values)
    if not ordered:
        return None
    return {f"p{percent}": percentile(ordered, percent) for percent in (50, 90, 99)}
