"""Test 2: a stream that is cancelled, at any stage, gives back what it held; no answer changes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ....runtime.protocol import BLS, ENSEMBLE
from . import canary
from .client import Answer, ask, connected, message
from .outcome import Outcome
from .stage import Running, Stage

CRITERION = (
    "blocks free < 1 s after cancelling in line, in preprocessing, vision, prefill, decoding and "
    "after the last response; next answers identical; a server so used stops < 5 s"
)
MOST_SECONDS, MOST_STOP = 1.0, 5.0
LONG = 200  # tokens


def run(stage: Stage, quick: bool) -> Outcome:
    if stage.bundle is None:
        figures = _stages(stage.shared(), quick)
        return Outcome(_passed(figures), figures, "the server's own end was not tried")
    with stage.server() as server:
        figures = _stages(server, quick)
        begun = time.monotonic()
    figures["stop, s"] = round(time.monotonic() - begun, 2)
    return Outcome(_passed(figures) and figures["stop, s"] < MOST_STOP, figures)


def _passed(figures: dict[str, Any]) -> bool:
    return figures["slowest, s"] < MOST_SECONDS and not figures["canaries changed"]


def _stages(server: Running, quick: bool) -> dict[str, Any]:
    before = canary.sing(server.grpc)
    first = {
        model: min(answer.times[0] for answer in _alone(server, model)) for model in (ENSEMBLE, BLS)
    }
    slowest: dict[str, float] = {}
    for model in (ENSEMBLE, BLS):
        for part in (0.0, 0.1, 0.3, 0.6, 0.9, "decoding", "after the last"):
            waits = [_cancel(server, model, part, first[model]) for _ in range(2 if quick else 10)]
            slowest[f"{model} {part}"] = round(max(waits), 3)
    asyncio.run(_after_the_last(server, 40 if quick else 200))
    server.until("dycoke_kv_blocks_used", 0, 10)
    worst = max(slowest, key=lambda name: slowest[name])
    return {
        "slowest, s": slowest[worst],
        "where": worst,
        "streams": len(slowest) * (2 if quick else 10) + (40 if quick else 200),
        "canaries changed": canary.changed(before, canary.sing(server.grpc)),
    }


def _question(model: str, tokens: int = LONG) -> Any:
    video = canary.video(1, 16)
    return message(
        model, text_input=b"What?", video_bytes_input=video, max_tokens=tokens, stream=True
    )


def _alone(server: Running, model: str) -> list[Answer]:
    async def ask_them() -> list[Answer]:
        async with connected(server.grpc) as channel:
            return [await ask(channel, _question(model, 1)) for _ in range(3)]

    return asyncio.run(ask_them())


def _cancel(server: Running, model: str, part: float | str, first: float) -> float:
    """Cancels at a part of the time to the first token, or later; seconds until no block is held
    and nothing waits."""

    async def cancel() -> None:
        async with connected(server.grpc) as channel:
            if part == "decoding":
                await ask(channel, _question(model), cancel_if=lambda answer: bool(answer.times))
            elif part == "after the last":
                request = _question(model, 3)
                await ask(channel, request, cancel_if=lambda answer: answer.complete)
            else:
                after = max(0.001, float(part) * first)
                await ask(channel, _question(model), cancel_after=after)

    asyncio.run(cancel())
    # A request that follows arrives when what was cancelled has been seen.
    waits = [server.until("dycoke_kv_blocks_used", 0, 20)]
    waits.append(server.until("dycoke_requests_waiting", 0, 20))
    return sum(waits)


async def _after_the_last(server: Running, count: int) -> None:
    """Four at a time, cancelled at the moment when the last response is there."""

    async def work() -> None:
        async with connected(server.grpc) as channel:
            for number in range(count // 4):
                request = _question((ENSEMBLE, BLS)[number % 2], 2)
                await ask(channel, request, cancel_if=lambda answer: answer.complete)

    await asyncio.gather(*(work() for _ in range(4)))
