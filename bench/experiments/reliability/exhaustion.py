"""Test 5: more long answers than the KV pool holds: some wait, none changes, none hangs."""

from __future__ import annotations

import asyncio
from typing import Any

from .client import gather, renewed, tokens_wanted
from .outcome import Outcome
from .stage import Stage

CRITERION = "requests wait while the pool is full; every answer as alone; nothing hangs"
_BLOCKS, _USED = "dycoke_kv_blocks", "dycoke_kv_blocks_used"


def long_answer(seed: int = 0, tokens: int = 1500) -> Any:
    return tokens_wanted(range(1 + seed, 9 + seed), tokens)


def run(stage: Stage, quick: bool) -> Outcome:
    server = stage.shared()
    server.until(_USED, 0, 60)
    tokens = 1200 if quick else 1500  # 16 at once are more than a pool of 16,384
    kinds = [long_answer(seed, tokens) for seed in range(2 if quick else 4)]
    alone = asyncio.run(gather(server.grpc, kinds, 1))
    requests = [renewed(kinds[n % len(kinds)]) for n in range(20 if quick else 48)]
    most_waiting = most_used = 0.0

    async def watch(done: asyncio.Event) -> None:
        nonlocal most_waiting, most_used
        while not done.is_set():
            values = await asyncio.to_thread(server.values)
            waiting = sum(v for k, v in values.items() if k.startswith("dycoke_requests_waiting"))
            used = sum(v for k, v in values.items() if k.startswith(f"{_USED}/"))
            most_waiting, most_used = max(most_waiting, waiting), max(most_used, used)

    async def both() -> list[Any]:
        done = asyncio.Event()
        watcher = asyncio.create_task(watch(done))
        answers = await gather(server.grpc, requests, len(requests), patience=300)
        done.set()
        await watcher
        return answers

    answers = asyncio.run(both())
    wrong = sum(
        not answer.error and answer.tokens != alone[n % len(kinds)].tokens
        for n, answer in enumerate(answers)
    )
    errors = [answer.error for answer in answers if answer.error]
    hangs = sum(error.startswith("HANGS") for error in errors)
    figures = {
        "answers": len(answers) - len(errors),
        "refused": len(errors),
        "tokens each": tokens,
        "most waiting": most_waiting,
        "pool used at most": round(most_used / max(server.value(_BLOCKS), 1), 3),
        "wrong": wrong,
        "hangs": hangs,
        "alone failed": sum(bool(answer.error) for answer in alone),
    }
    full = most_waiting > 0 and figures["pool used at most"] > 0.5
    passed = full and not (wrong or hangs or figures["alone failed"])
    return Outcome(passed, figures, errors[0][:200] if errors else "")
