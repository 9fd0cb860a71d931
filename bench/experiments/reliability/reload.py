"""Test 8: a model is loaded again under load; a bad one leaves the good one serving."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from ....runtime.protocol import LLM, VISION
from . import canary
from .client import gather, renewed
from .outcome import Outcome
from .stage import Running, Stage

CRITERION = (
    "no request in flight fails while a model is loaded again; a bad one is refused, the old serves"
)
_EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")


def run(stage: Stage, quick: bool) -> Outcome:
    opened = ("model-repository",)
    with stage.server(extra=_EXPLICIT, opened=opened) as server:
        before = canary.sing(server.grpc)
        figures: dict[str, Any] = {}
        for model in (VISION, LLM):
            swap = asyncio.run(_swap(server, model, 1 if quick else 3))
            figures |= {f"{model}: {name}": value for name, value in swap.items()}
        figures["bad one: status"] = _bad(server)
        figures["canaries changed"] = canary.changed(before, canary.sing(server.grpc))
        server.wait(0)
    passed = not figures["canaries changed"] and figures["bad one: status"] >= 400
    passed = passed and not any(value for name, value in figures.items() if "failed" in name)
    return Outcome(passed, figures)


async def _swap(server: Running, model: str, times: int) -> dict[str, Any]:
    """Asks all the while; failed: requests that did not get their answer, or loads that were
    refused."""
    done = False
    failed: list[str] = []
    count = 0

    async def ask_on() -> None:
        nonlocal count
        while not done:
            for answer in await gather(server.grpc, list(map(renewed, canary.requests())), 3):
                count += 1
                if answer.error:
                    failed.append(answer.error)

    tasks = [asyncio.create_task(ask_on()) for _ in range(2)]
    begun = time.monotonic()
    statuses = []
    for _ in range(times):
        await asyncio.to_thread(touch, server, model)
        statuses.append(await asyncio.to_thread(load, server, model))
        await asyncio.sleep(1)
    seconds = (time.monotonic() - begun) / times
    done = True
    await asyncio.gather(*tasks)
    return {
        "requests": count,
        "failed": len(failed),
        "loads failed": sum(status != 200 for status in statuses),
        "a load, s": round(seconds, 1),
        **({"first error": failed[0][:200]} if failed else {}),
    }


def touch(server: Running, model: str) -> None:
    """Changes the model's code, so that the server loads it again."""
    file = _file(server, model)
    file.write_text(file.read_text() + "\n# loaded again\n")


def _bad(server: Running) -> int:
    """Status of loading a vision model whose code raises."""
    file = _file(server, VISION)
    good = file.read_text()
    file.write_text("raise RuntimeError('a bad build')\n")
    status = load(server, VISION)
    file.write_text(good)
    return status


def _file(server: Running, model: str) -> Path:
    assert server.repository is not None
    return server.repository / model / "1" / "model.py"


def load(server: Running, model: str) -> int:
    """HTTP status."""
    return server.post(f"v2/repository/models/{model}/load", {})
