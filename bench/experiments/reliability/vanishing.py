"""Test 3: clients that are gone without a word cost nothing for long."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

from ....runtime.protocol import BLS
from . import canary
from .client import Answer, ask, connected, message
from .exhaustion import long_answer
from .outcome import Outcome
from .relay import Relay
from .stage import Running, Stage

CRITERION = (
    "64 streams of a killed client: blocks free < 1 s; of a half-open peer: within the keepalive "
    "of 15 s; no growth of open files or threads over 500 rounds of resets"
)
STREAMS = 64
KEEPALIVE = 15.0  # seconds: interval and timeout of `dycoke serve`
SLACK = 8  # files or threads by which two looks at an idle server may differ


def run(stage: Stage, quick: bool) -> Outcome:
    server = stage.shared()
    before = canary.sing(server.grpc)
    killed = _killed_client(server)
    half_open = asyncio.run(_half_open(server))
    asyncio.run(_resets(server, 20))  # what is made once is made
    server.until("dycoke_kv_blocks_used", 0, 60)
    first = server.handles()
    rounds = 40 if quick else 500
    asyncio.run(_resets(server, rounds))
    server.until("dycoke_kv_blocks_used", 0, 60)
    last = server.handles()
    growth = {
        name: [last[name][kind] - first[name][kind] for kind in (0, 1)] for name in sorted(first)
    }
    most = max((change for changes in growth.values() for change in changes), default=0)
    figures: dict[str, Any] = {
        "killed client, s": round(killed, 2),
        "half-open, s": round(half_open, 2),
        "rounds": rounds,
        "most files or threads more": most,
        "canaries changed": canary.changed(before, canary.sing(server.grpc)),
    }
    passed = killed < 1 and half_open < KEEPALIVE + 3 and most <= SLACK
    return Outcome(passed and not figures["canaries changed"], figures)


def question(tokens: int = 2000) -> Any:
    """Text alone, and an answer that takes long."""
    return message(BLS, text_input=b"Tell me everything.", max_tokens=tokens, stream=True)


_CLIENT = """
import asyncio, sys
from {package}.client import ask, connected
from {package}.exhaustion import long_answer
async def main():
    async with connected(sys.argv[1]) as channel:
        waiting = asyncio.Event()
        tasks = [asyncio.create_task(ask(channel, long_answer(), on_piece=lambda _: waiting.set()))
                 for _ in range({streams})]
        await waiting.wait()
        print("begun", flush=True)
        await asyncio.gather(*tasks)
asyncio.run(main())
"""


def _killed_client(server: Running) -> float:
    """Seconds until nothing of a killed client's streams is held."""
    program = _CLIENT.format(package=__package__, streams=STREAMS)
    with subprocess.Popen(
        [sys.executable, "-c", program, server.grpc], stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        client.stdout.readline()
        # Published a little after the first token.
        server.until_any("dycoke_kv_blocks_used", 60)
        client.kill()
    return server.until("dycoke_kv_blocks_used", 0, 60)


async def _half_open(server: Running) -> float:
    async with Relay(server.grpc) as relay, connected(relay.address) as channel:
        begun = asyncio.Event()

        def stop(_: Answer) -> None:
            relay.freeze()
            begun.set()

        task = asyncio.create_task(ask(channel, long_answer(tokens=3500), on_piece=stop))
        await begun.wait()
        seconds = await asyncio.to_thread(server.until, "dycoke_kv_blocks_used", 0, 60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return seconds


async def _resets(server: Running, rounds: int) -> None:
    """Each round: a connection of its own, whose stream is in flight when it is reset."""

    async def one_round() -> None:
        async with Relay(server.grpc) as relay, connected(relay.address) as channel:
            await ask(channel, question(), on_piece=lambda _: relay.reset(), patience=60)

    async def work(count: int) -> None:
        for _ in range(count):
            await one_round()

    await asyncio.gather(*(work(rounds // 4) for _ in range(4)))
