"""How long a short request waits for its first token beside the worst that the bounds allow.

python -m dycoke_trt.bench.experiments.fairness BUNDLE -o bench/results/fairness.json

For each kind of heavy request: short ones alone, then beside several heavy ones at once, in turns;
the criterion is the ratio of the medians. Heavy clients run in a process of low priority,
so that what they compute for themselves is not measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...demo.mp4 import encode_h264, encode_mp4
from ...demo.shapes import HELD_OUT_SEEDS, make_sample
from ...runtime.protocol import ENSEMBLE
from ..machine import machine
from .reliability.client import Answer, connected, message, renewed
from .reliability.client import ask as ask_once
from .reliability.stage import Running, Stage

CRITERION = 1.5
_SECONDS = 8.0  # that heavy requests keep coming
_PACKAGES = ("nvidia-pytriton", "torch", "onnxruntime", "numpy", "av", "grpcio")


def one_gop(width: int, height: int, frames: int) -> bytes:
    """An H.264 file that seeks nowhere: one keyframe, after it blocks that move."""
    draw = np.random.default_rng(0)
    block = max(min(height // 16, 32), 1)
    scenes = draw.integers(0, 256, (4, -(-height // block), -(-width // block), 3), np.uint8)
    pictures = (
        np.kron(np.roll(scenes[n % 4], n, 1), np.ones((block, block, 1), np.uint8))[:height, :width]
        for n in range(frames)
    )
    options = {"preset": "ultrafast", "g": "1000000", "sc_threshold": "0", "crf": "35"}
    return encode_h264(pictures, height, width, 30, options)


def _file(width: int, height: int, frames: int) -> dict[str, Any]:
    return {"video_file_input": one_gop(width, height, frames), "num_frames": 32}


def _raw(width: int, height: int) -> dict[str, Any]:
    return {"video_bytes_input": np.zeros((1, 32, height, width, 3), np.uint8)}


def _words() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    words = [bytes(draw.integers(97, 123, 256, np.uint8)) for _ in range(64)]
    return {**_raw(32, 32), "stop_words": words}


def _question() -> dict[str, Any]:
    """As many positions as the model and its pool have."""
    return {**_raw(32, 32), "text_input": b"What happens? " * 380}


def _answer() -> dict[str, Any]:
    """As long as the model's 4,096 positions allow behind 32 frames."""
    return {**_raw(32, 32), "max_tokens": 3300, "temperature": 1e3, "seed": 1, "top_k": 0}


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "1080p, 1,500 frames, one GOP": partial(_file, 1920, 1080, 1500),
    "2160p, 150 frames, one GOP": partial(_file, 3840, 2160, 150),
    "64 x 64, 50,000 frames, one GOP": partial(_file, 64, 64, 50_000),
    "raw 32 frames of 1080p": partial(_raw, 1920, 1080),
    "32 frames of the tower's size": partial(_raw, 96, 96),
    "64 stop words of 256 bytes": _words,
    "a question of 5 kB": _question,
    "an answer of 3,300 tokens": _answer,
}


def main() -> int:
    options = _options()
    report: dict[str, Any] = {
        "machine": machine(*_PACKAGES),
        "load before": os.getloadavg(),
        "rounds": options.rounds,
        "criterion": f"median beside < {CRITERION} x median alone",
        "kinds": [],
    }
    stage = Stage(bundle=Path(options.bundle))
    try:
        for name, inputs in KINDS.items():
            if options.kind not in name:
                continue
            values = {"text_input": b"What happens?", "max_tokens": 1, **inputs()}
            for width in options.at_once:
                row = _measure(stage.shared(), values, width, options.rounds)
                report["kinds"].append({"kind": name, "at once": width, **row})
                print(name, json.dumps(report["kinds"][-1]), flush=True)
                if options.output:
                    Path(options.output).write_text(json.dumps(report, indent=1) + "\n")
    finally:
        stage.close()
    return int(any(row["ratio"] >= CRITERION for row in report["kinds"]))


def _measure(server: Running, values: dict[str, Any], width: int, rounds: int) -> dict[str, Any]:
    alone: list[float] = []
    beside: list[float] = []
    heavy: list[float] = []
    refused: list[str] = []
    spawn = multiprocessing.get_context("spawn")
    asyncio.run(_short(server, 3))  # warm
    for _ in range(rounds):
        alone += asyncio.run(_short(server, 12))
        receiving, sending = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_heavy, args=(server.grpc, values, width, sending))
        process.start()
        sending.close()
        receiving.recv()  # it is about to send
        beside += asyncio.run(_short(server, None, receiving.poll))
        answers: list[Answer] = receiving.recv()
        process.join()
        heavy += [answer.seconds for answer in answers]
        refused += [answer.error for answer in answers if answer.error]
    first, second = statistics.median(alone), statistics.median(beside)
    return {
        "median alone, s": round(first, 4),
        "median beside, s": round(second, 4),
        "ratio": round(second / first, 2),
        "p90 alone, s": round(statistics.quantiles(alone, n=10)[-1], 4),
        "p90 beside, s": round(statistics.quantiles(beside, n=10)[-1], 4),
        "short requests": [len(alone), len(beside)],
        "median heavy, s": round(statistics.median(heavy), 2),
        "heavy refused": [len(refused), *sorted(set(refused))[:1]],
    }


async def _short(
    server: Running, count: int | None, done: Callable[[], bool] = lambda: False
) -> list[float]:
    """Times to first token of short requests, one after the other: `count`, or until done."""
    sample = make_sample(HELD_OUT_SEEDS[700_000])
    file = encode_mp4(sample.frames)
    times: list[float] = []
    async with connected(server.grpc) as channel:
        while len(times) < count if count is not None else not times or not done():
            request = message(
                ENSEMBLE, text_input=sample.question.encode(), video_file_input=file,
                num_frames=8, max_tokens=4, stream=True,
            )  # fmt: skip
            answer = await ask_once(channel, request)
            assert not answer.error, answer.error
            times.append(answer.times[0])
    return times


def _heavy(address: str, values: dict[str, Any], width: int, pipe: Any) -> None:
    os.nice(19)
    request = message(ENSEMBLE, **values)
    end = time.monotonic() + _SECONDS
    answers: list[Answer] = []

    async def work() -> None:
        async with connected(address) as channel:
            while not answers or time.monotonic() < end:
                answers.append(await ask_once(channel, renewed(request)))

    async def all_of_them() -> None:
        await asyncio.gather(*(work() for _ in range(width)))

    pipe.send(None)
    asyncio.run(all_of_them())
    pipe.send(answers)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("-o", "--output", help="JSON file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4], help="heavy requests")
    parser.add_argument("--kind", default="", help="only kinds whose name has this text")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
