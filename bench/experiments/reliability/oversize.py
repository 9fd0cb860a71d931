"""Test 6: what the engines cannot hold is refused before they do any work for it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ....runtime.protocol import BLS, ENSEMBLE, LLM, VISION
from . import canary
from .client import message, one
from .outcome import Outcome
from .stage import Running, Stage

CRITERION = (
    "frames, tokens and prompts beyond the build are refused with limit and value, before the "
    "vision or LLM step ran"
)


def run(stage: Stage, quick: bool) -> Outcome:  # noqa: ARG001 (takes a second)
    server = stage.shared()
    worked, unclear = 0, []
    refused: list[str] = []
    for name, request, numbers in _requests():
        before = _work(server)
        answer = one(server.grpc, request)
        if _work(server) != before:
            worked += 1
            unclear.append(f"{name}: {answer.error or answer.content}")
        elif not answer.error or not _tells(answer.error, numbers):
            unclear.append(f"{name}: {answer.error or answer.content}")
        refused.append(answer.error)
    figures: dict[str, Any] = {
        "requests": len(refused),
        "worked for first": worked,
        "without value and limit": len(unclear),
    }
    return Outcome(not worked and not unclear, figures, "; ".join(unclear)[:600])


def _work(server: Running) -> float:
    """Requests that the two engines executed, or failed."""
    return sum(
        server.value(f"nv_inference_{what}/{model}")
        for what in ("exec_count", "request_failure")
        for model in (VISION, LLM)
    )


def _tells(error: str, numbers: list[int]) -> bool:
    """Whether it names the value, one of `numbers` if given, and another number, the limit."""
    named = {int(number) for number in re.findall(r"-?\d+", error.replace(",", ""))}
    if not numbers:
        return len(named) > 1
    return bool(named & set(numbers) and named - set(numbers))


def _requests() -> list[tuple[str, Any, list[int]]]:
    """Name, request, and values one of which the error has to name; none: a tokeniser knows."""
    video = np.zeros((1, 400, 2, 2, 3), np.uint8)
    requests: list[tuple[str, Any, list[int]]] = []
    for model in (ENSEMBLE, BLS):
        frames = message(model, text_input=b"What?", video_bytes_input=video)
        requests.append((f"{model}: 400 frames", frames, [400]))
        tokens = message(
            model, text_input=b"What?", video_bytes_input=canary.video(0), max_tokens=2**31 - 1
        )
        requests.append((f"{model}: max_tokens", tokens, [2**31 - 1]))
        long = message(model, text_input=b"word " * 12_000, video_bytes_input=canary.video(0))
        requests.append((f"{model}: a question of 60 kB", long, []))
    return requests
