"""Test 14: what was seen before never shows up in another's answer."""

from __future__ import annotations

import asyncio
from typing import Any

from ....runtime.protocol import BLS, ENSEMBLE
from . import canary
from .client import gather, message, renewed
from .outcome import Outcome
from .stage import Stage

CRITERION = (
    "same video and question, another question, another video under the same prompt, in any order: "
    "each as on a server that saw nothing else"
)


def run(stage: Stage, quick: bool) -> Outcome:
    server = stage.shared()
    videos = range(2 if quick else 6)
    requests: list[Any] = [
        message(model, text_input=question, video_bytes_input=canary.video(seed, 8), max_tokens=20)
        for model in (ENSEMBLE, BLS)
        for question in canary.QUESTIONS[:2]
        for seed in videos
    ]
    first = asyncio.run(gather(server.grpc, requests, 1))
    again: list[Any] = []
    for _ in range(1 if quick else 4):  # right after itself, and after every other
        again += asyncio.run(gather(server.grpc, [renewed(r) for r in reversed(requests)], 1))
    wanted = [answer.content for answer in reversed(first)] * (1 if quick else 4)
    wrong = sum(
        bool(answer.error) or answer.content != content
        for answer, content in zip(again, wanted, strict=True)
    )
    contents = {answer.content for answer in first}
    figures = {
        "answers": len(again),
        "different": wrong,
        "failed": sum(bool(answer.error) for answer in first),
        "distinct answers": len(contents),
    }
    note = "nothing is kept between requests: block reuse is off, so there are no hits to measure"
    return Outcome(not wrong and not figures["failed"] and len(contents) > 1, figures, note)
