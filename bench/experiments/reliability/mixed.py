"""A load of all that clients do: questions at every door, wrong ones, and every way to end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ....runtime.protocol import BLS, ENSEMBLE
from . import canary, fuzz
from .client import Answer, ask, connected, message, tokens_wanted
from .relay import Relay

# What gRPC, Triton or a launcher says while a server goes away or comes back.
_AWAY = (
    "UNAVAILABLE", "CANCELLED", "the stream ended", "the server is ending", "the server ended",
    "no available versions", "is not ready", "not found", "failed to connect", "is not healthy",
    "stub process", "interrupted",
)  # fmt: skip
_AWAY_SECONDS = 0.5  # that a client waits before it connects again


def kind(answer: Answer, name: str, *, cancelled: bool) -> str:
    """answered, refused, busy, away (no server, said clearly), cancelled; or internal, hangs."""
    if answer.error.startswith("HANGS"):
        return "hangs"
    if not answer.error:
        return "cancelled" if cancelled and not answer.complete else "answered"
    judged = fuzz.judge(answer, name)
    if any(text in answer.error for text in _AWAY):
        return "away"
    return "refused" if judged in ("refused", "unnamed") else judged


async def mixed_load(
    address: str,
    *,
    requests: int,
    width: int,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
    on_answer: Callable[[str, Answer], None] = lambda *_: None,
) -> Counter[str]:
    """Sends `requests` drawn with `seed`, `width` at a time, until `stop`; counts their kinds.

    on_answer: is told the kind of each and the answer.
    """
    counts: Counter[str] = Counter()
    draws = (random.Random(f"{seed}/{number}") for number in range(requests))

    async def work() -> None:
        for draw in draws:
            if stop():
                return
            outcome, answer = await _one(address, draw)
            counts[outcome] += 1
            on_answer(outcome, answer)
            if outcome == "away":
                await asyncio.sleep(_AWAY_SECONDS)

    await asyncio.gather(*(work() for _ in range(width)))
    return counts


async def _one(address: str, draw: random.Random) -> tuple[str, Answer]:
    request, name = fuzz.case(draw) if draw.random() < 0.2 else (_question(draw), "")
    end = draw.random()
    if end < 0.05:
        async with Relay(address) as relay, connected(relay.address) as channel:
            pieces = draw.randrange(1, 6)
            answer = await ask(
                channel,
                request,
                on_piece=lambda so_far: relay.reset() if len(so_far.times) >= pieces else None,
            )
            return "reset" if answer.error else "answered", answer
    async with connected(address) as channel:
        if end < 0.12:
            answer = await ask(channel, request, cancel_after=draw.uniform(0.001, 0.3))
        elif end < 0.22:
            pieces = draw.randrange(0, 6)
            answer = await ask(channel, request, cancel_if=lambda got: len(got.times) >= pieces)
        else:
            answer = await ask(channel, request)
    return kind(answer, name, cancelled=end < 0.22), answer


def _question(draw: random.Random) -> Any:
    options: dict[str, Any] = {}
    if draw.random() < 0.4:
        options |= {"temperature": draw.choice((0.2, 1.0, 5.0)), "seed": draw.randrange(2**63)}
        options |= draw.choice(({}, {"top_p": 0.9}, {"top_k": 5}))
    length = draw.choice((1, 2, 5, 20, 20, 60))
    door = draw.random()
    names = {"top_k": "runtime_top_k", "top_p": "runtime_top_p"}
    if door < 0.25:
        options = {names.get(name, name): value for name, value in options.items()}
        return tokens_wanted([draw.randrange(1, 300) for _ in range(8)], length, **options)
    options |= {"max_tokens": length, "stream": draw.random() < 0.7}
    if draw.random() < 0.3:
        options |= {"return_num_input_tokens": True, "return_num_output_tokens": True}
    if draw.random() < 0.2:
        options["stop_words"] = [b"red", b"moves to the"]
    outputs = ["text_output"] if draw.random() < 0.3 else []
    if door < 0.45:
        return message(BLS, outputs, text_input=b"What is a video?", **options)
    frames = draw.choice((4, 8, 16))
    video = canary.video(draw.randrange(8), frames)
    if draw.random() < 0.3:
        video = np.repeat(np.repeat(video, 3, axis=2), 4, axis=3)
    model = ENSEMBLE if door < 0.75 else BLS
    question = canary.QUESTIONS[draw.randrange(3)]
    return message(model, outputs, text_input=question, video_bytes_input=video, **options)
