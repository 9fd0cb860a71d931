"""The in-process side of the serving benchmark: the server's steps without the server.

One thread prepares requests and embeds their videos, another steps the engine, as the server does
it; text is made where the engine delivers tokens.
"""

from __future__ import annotations

import argparse
import threading
import time
import uuid
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from ....bundle.files import open_bundle
from ....runtime.detokenize import TextStream
from ....runtime.native.load import load_built_engine
from ....runtime.preparation import Preparation
from ....runtime.request import Event, Request
from ....runtime.stop_words import unpack_words
from ....runtime.vision import OnnxVision
from .sides import QUESTION, Outcome, Rounds, answer_loads


class Local:
    """A bundle's steps, and the thread of its engine."""

    def __init__(self, bundle: Path, vision_threads: int) -> None:
        self._prepare = Preparation(bundle, open_bundle(bundle))
        self._vision = OnnxVision(bundle, threads=vision_threads)
        self._engine = load_built_engine(bundle)
        threading.Thread(target=self._schedule, daemon=True).start()

    def run(self, load: Rounds) -> Outcome:
        outcome = Outcome()
        video = load.video()
        for _ in range(load.rounds):
            begun = time.perf_counter()
            done: SimpleQueue[list[tuple[float, int]]] = SimpleQueue()
            for _ in range(load.streams):
                self._ask(video[0], load.tokens, done)
            answers = [done.get() for _ in range(load.streams)]
            outcome.seconds += time.perf_counter() - begun
            for arrived in answers:
                outcome.add(begun, arrived)
        return outcome

    def _ask(self, video: Any, tokens: int, done: SimpleQueue[list[tuple[float, int]]]) -> None:
        made = self._prepare(QUESTION.encode(), video=video, max_tokens=tokens)
        embeddings = self._vision(torch.from_numpy(made["frames"]))[0]
        text = TextStream(self._prepare.prompts.tokenizer)
        arrived: list[tuple[float, int]] = []

        def on_event(event: Event) -> None:
            text.push(event.tokens)
            arrived.append((time.perf_counter(), len(event.tokens)))
            if event.finish is not None:
                text.flush()
                done.put(arrived)

        self._engine.submit(
            Request(
                uuid.uuid4().hex,
                made["input_ids"][0].tolist(),
                tokens,
                on_event,
                embeddings,
                end_ids=frozenset(made["end_id"][0].tolist()),
                stop=unpack_words(made["stop_words_list"].astype(np.int32)),
            )
        )

    def _schedule(self) -> None:
        while self._engine.wait_for_work():
            self._engine.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--vision-threads", type=int, required=True)
    options = parser.parse_args()
    answer_loads(Local(options.bundle, options.vision_threads).run)


if __name__ == "__main__":
    main()
