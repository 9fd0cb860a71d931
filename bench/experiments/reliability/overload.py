"""Test 4: four times as many clients as the server holds: the line is bounded, and says so."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from typing import Any

from ....runtime.limits import RequestLimits
from ....runtime.protocol import BLS
from .client import ask, connected, message
from .fuzz import judge
from .outcome import Outcome
from .stage import Running, Stage

CRITERION = (
    "what is not accepted is refused as busy (UNAVAILABLE); accepted p99 time to first token < "
    "1.5x of that of as many clients as the server holds; goodput >= 90 % of theirs"
)
BATCH, LINE = 16, 16  # requests that the server answers at once, and that wait beside them
SATURATING = BATCH + LINE  # clients: as many as are never refused
TOKENS = 24
# Seconds that a client waits after each refusal in a row: doubled, at most the last, less up to a
# quarter, as the openai package does it.
_BACKOFF, _LONGEST_BACKOFF = 1.0, 8.0


def run(stage: Stage, quick: bool) -> Outcome:
    with stage.server(requests=RequestLimits(max_queue=LINE)) as server:
        seconds = 8 if quick else 30
        asyncio.run(_load(server, SATURATING, 2))  # warm
        peak = asyncio.run(_load(server, SATURATING, seconds))
        over = asyncio.run(_load(server, 4 * SATURATING, seconds))
    figures: dict[str, Any] = {
        "goodput at saturation, tokens/s": peak["goodput"],
        "goodput at 4x": over["goodput"],
        "p99 first token at saturation, s": peak["p99"],
        "p99 first token at 4x, s": over["p99"],
        "ratio of p99": round(over["p99"] / peak["p99"], 2),
        "ratio of goodput": round(over["goodput"] / peak["goodput"], 2),
        "busy": over["busy"],
        "other refusals": over["other"],
    }
    passed = (
        figures["ratio of p99"] < 1.5 and figures["ratio of goodput"] >= 0.9 and over["busy"] > 0
        and not over["other"]
    )  # fmt: skip
    return Outcome(passed, figures, over["example"])


async def _load(server: Running, clients: int, seconds: float) -> dict[str, Any]:
    """A closed loop. goodput: tokens per second of its time; p99: of times to first token."""
    firsts: list[float] = []
    kinds: Counter[str] = Counter()
    tokens = 0
    example = ""
    end = time.monotonic() + seconds

    async def work(number: int) -> None:
        nonlocal tokens, example
        refusals = 0
        draw = random.Random(number)
        async with connected(server.grpc) as channel:
            while time.monotonic() < end:
                request = message(
                    BLS, text_input=b"What happens? %d" % number, max_tokens=TOKENS, stream=True
                )
                asked = time.monotonic()
                answer = await ask(channel, request)
                kind = judge(answer, "")
                kinds[kind] += 1
                if kind == "answered":
                    refusals = 0
                    firsts.append(answer.times[0])
                    tokens += sum(asked + after < end for after in answer.times)
                    continue
                if kind != "busy":
                    example = answer.error[:200]
                delay = min(_BACKOFF * 2**refusals, _LONGEST_BACKOFF)
                refusals += 1
                await asyncio.sleep(delay * (1 - draw.random() / 4))

    await asyncio.gather(*(work(number) for number in range(clients)))
    quantiles = statistics.quantiles(firsts, n=100) if len(firsts) > 1 else [float("inf")]
    return {
        "goodput": round(tokens / seconds, 1),
        "p99": round(quantiles[-1], 3),
        "busy": kinds["busy"],
        "other": kinds.total() - kinds["busy"] - kinds["answered"],
        "example": example,
    }
