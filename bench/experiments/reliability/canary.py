"""A few fixed requests whose answers must never change, whatever happened to the server before."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.protocol import BLS, ENSEMBLE
from .client import Answer, gather, message, tokens_wanted

FRAMES, SIDE = 4, 64
QUESTIONS = (b"What happens in this video?", b"Which colour?", b"What moves?")


def video(seed: int, frames: int = FRAMES) -> NDArray[np.uint8]:
    """uint8 [1, F, 64, 64, 3]: a square of a colour of its own that moves over noise."""
    draw = np.random.default_rng(seed)
    made = draw.integers(0, 60, (1, frames, SIDE, SIDE, 3), np.uint8)
    colour = draw.integers(0, 256, 3, np.uint8)
    for frame in range(frames):
        at = (seed * 7 + frame * 5) % (SIDE - 20)
        made[0, frame, at : at + 20, 10:30] = colour
    return made


def requests(count: int = 3) -> list[Any]:
    """For both pipelines and the LLM step alone, greedy."""
    made: list[Any] = []
    for seed, question in list(enumerate(QUESTIONS))[:count]:
        for model in (ENSEMBLE, BLS):
            made.append(
                message(
                    model, text_input=question, video_bytes_input=video(seed), max_tokens=12,
                    stream=True,
                )
            )  # fmt: skip
        made.append(tokens_wanted(range(1 + seed, 9 + seed), 24))
    return made


def sing(address: str, count: int = 3) -> list[Answer]:
    """The answers, one at a time."""
    return asyncio.run(gather(address, requests(count), 1, patience=60))


def changed(before: list[Answer], after: list[Answer]) -> int:
    """How many answers differ, or failed."""
    pairs = zip(before, after, strict=True)
    return sum(bool(now.error) or now.content != then.content for then, now in pairs)
