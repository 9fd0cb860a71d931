"""Load on a running server over gRPC: closed loop or Poisson arrivals, latencies and rates.

TTFT is the time to the first response with tokens; inter-token latency the time between responses
with tokens, over the tokens of the later one. Times are seconds.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..core.errors import DyCokeError
from ..runtime.client import request_tensor
from .profile_summary import percentile


@dataclass
class Sent:
    """One request. error: "" where it was answered to its end."""

    sent: float
    first: float | None = None
    total: float = 0.0
    tokens: int = 0
    gaps: list[float] = field(default_factory=list)
    error: str = ""


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


async def run_load(
    server: str,
    model: str,
    load: Load,
    values: Callable[[int], dict[str, Any]],
    done: list[Sent],
    on_done: Callable[[], None] = lambda: None,
) -> float:
    """Sends the requests; returns the seconds from the first one to the last answer.

    values: input tensors of request i by name. done: gets each request as it ends, so that what is
    there when this is cancelled can be kept.
    """
    from tritonclient.grpc.aio import InferenceServerClient

    begun = time.perf_counter()
    async with InferenceServerClient(server) as client:
        if load.rate is None:
            places = asyncio.Semaphore(load.concurrency)

            async def limited(i: int) -> None:
                async with places:
                    await send(i)
        else:
            draw = random.Random(load.seed)
            due, at = [], 0.0
            for _ in range(load.requests):
                due.append(at)
                at += draw.expovariate(load.rate)

            async def limited(i: int) -> None:
                await asyncio.sleep(max(0.0, begun + due[i] - time.perf_counter()))
                await send(i)

        async def send(i: int) -> None:
            done.append(await _ask(client, model, values(i), begun))
            on_done()

        async with asyncio.TaskGroup() as tasks:
            for i in range(load.requests):
                tasks.create_task(limited(i))
    return time.perf_counter() - begun


async def _ask(client: Any, model: str, values: dict[str, Any], begun: float) -> Sent:
    """One streamed request; every failure of the server or the connection becomes its error."""
    from tritonclient.utils import InferenceServerException

    inputs = [request_tensor(name, value) for name, value in values.items()]

    async def messages() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": model,
            "inputs": inputs,
            "request_id": uuid.uuid4().hex,
            "enable_empty_final_response": True,
        }

    start = before = time.perf_counter()
    request = Sent(start - begun)
    try:
        async for result, error in client.stream_infer(messages()):
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
    except InferenceServerException as error:
        request.error = error.message()
    request.total = time.perf_counter() - start
    return request


def summarise_load(load: Load, done: list[Sent], seconds: float) -> dict[str, Any]:
    """Percentiles over requests without an error, and rates."""
    good = [request for request in done if not request.error]
    errors: dict[str, int] = {}
    for request in done:
        if request.error:
            errors[request.error] = errors.get(request.error, 0) + 1
    return {
        **asdict(load),
        "sent": len(done),
        "answered": len(good),
        "errors": errors,
        "seconds": seconds,
        "requests_per_second": len(good) / seconds,
        "tokens_per_second": sum(request.tokens for request in good) / seconds,
        "ttft": _percentiles([r.first for r in good if r.first is not None]),
        "inter_token": _percentiles([gap for r in good for gap in r.gaps]),
        "end_to_end": _percentiles([r.total for r in good]),
    }


def _percentiles(values: list[float]) -> dict[str, float] | None:
    ordered = sorted(values)
    if not ordered:
        return None
    return {f"p{percent}": percentile(ordered, percent) for percent in (50, 90, 99)}
