"""Test 10: neighbours in a batch, their order, and slots that others had change no answer."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from ....runtime.protocol import BLS, ENSEMBLE
from . import canary
from .client import gather, message, renewed, tokens_wanted
from .outcome import Outcome
from .stage import Stage

CRITERION = "every answer in every mix and order equals that alone"


def kinds() -> list[Any]:
    """Requests of different lengths and doors; also sampled ones, whose seed makes them equal."""
    requests: list[Any] = []
    for seed in range(4):
        for model in (ENSEMBLE, BLS):
            video = canary.video(seed, 4 * (1 + seed % 3))
            question = canary.QUESTIONS[seed % 3]
            values: dict[str, Any] = {
                "text_input": question,
                "video_bytes_input": video,
                "max_tokens": 40,
            }
            requests.append(message(model, **values, stream=True))
            requests.append(message(model, **values, temperature=1.0, seed=seed))
        requests.append(tokens_wanted(range(seed, seed + 8 * (seed + 1)), 30 + 20 * seed))
    return requests


def run(stage: Stage, quick: bool) -> Outcome:
    server = stage.shared()
    requests = kinds()
    alone = asyncio.run(gather(server.grpc, requests, 1))
    wrong = failed = total = 0
    draw = random.Random(0)
    for _ in range(3 if quick else 40):
        order = draw.sample(range(len(requests)), draw.randrange(4, len(requests) + 1))
        mix = [renewed(requests[number]) for number in order]
        answers = asyncio.run(gather(server.grpc, mix, draw.choice((2, 8, len(mix)))))
        for number, answer in zip(order, answers, strict=True):
            total += 1
            failed += bool(answer.error)
            wrong += not answer.error and answer.content != alone[number].content
    figures = {
        "answers": total,
        "different": wrong,
        "failed": failed,
        "alone failed": sum(bool(answer.error) for answer in alone),
    }
    first = next((answer.error for answer in alone if answer.error), "")
    return Outcome(not (wrong or failed or figures["alone failed"]), figures, first)
