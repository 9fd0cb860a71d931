"""The shapes suite: right answers on held-out synthetic videos, under any DyCokeConfig.

The model is plain transformers; tower, projector and pooling run once per sample, then TTM and the
oracle's generation run for every setting, so that all settings see the same decoded frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ..core.config import DyCokeConfig
from ..core.ttm import ttm_merge
from ..demo.mp4 import round_trip
from ..demo.network import frame_features, load_model
from ..demo.normalise import to_pixels
from ..demo.shapes import HELD_OUT_SEEDS, Sample, make_sample, score
from ..demo.tokenizer import load_tokenizer, prompt_prefix, prompt_suffix
from .oracle import (
    Generation,
    gate_hits,
    generate,
    steps_attending_everything,
    tokens_that_entered,
)
from .study import Setting, Span

MAX_NEW_TOKENS = 96


@dataclass(frozen=True)
class Outcome:
    """One answer, and what its decode steps did.

    score: 0..1; steps: decode steps after the first token; pruned: steps whose layers >= l did
    not attend to every visual token; attended: visual tokens that these attended to, in sum;
    entered: those of them that the step before, pruned too, did not attend to; gate_hits: steps
    that resembled their predecessor; mass_kept: sum over pruned steps of the share of visual
    attention on the kept tokens.
    """

    task: str
    score: float
    answer: str
    visual_tokens: int
    steps: int
    pruned: int
    attended: int
    entered: int
    gate_hits: int
    full_steps: int
    mass_kept: float


class Answerer:
    """The demo model under any configuration. Raises DyCokeError if its files cannot be read."""

    def __init__(self, model_dir: Path) -> None:
        self.model = load_model(model_dir)
        self.tokenizer = load_tokenizer(model_dir)
        end = self.model.generation_config.eos_token_id
        self.end_ids = frozenset(end if isinstance(end, list) else [end])

    @torch.no_grad()
    def features(self, sample: Sample) -> torch.Tensor:
        """fp32 [F, N, D] of the sample's frames after an mp4 round trip."""
        return frame_features(self.model, to_pixels(round_trip(sample.frames)))

    @torch.no_grad()
    def visual(self, features: torch.Tensor, config: DyCokeConfig) -> torch.Tensor:
        """What the language model sees of a video: [V, D], survivors and image_newline."""
        merged = ttm_merge(features, config.k, config.ttm, seed=config.seed)
        return torch.cat([merged, self.model.model.image_newline[None]])

    def span(self, k: float = 0.7) -> Span:
        """Of every sample after TTM at `k`."""
        visual = self.visual(self.features(make_sample(0)), DyCokeConfig(k=k))
        return Span(len(self.embed_prompt("?")[0]), len(visual))

    def generate(
        self, features: torch.Tensor, question: str, setting: Setting
    ) -> tuple[Generation, int]:
        """The oracle's generation and the number of visual tokens, image_newline included."""
        config, tokens_per_block = setting
        visual = self.visual(features, config)
        before, after = self.embed_prompt(question)
        span = (len(before), len(before) + len(visual))
        generation = generate(
            self.model.model.language_model,
            self.model.lm_head,
            torch.cat([before, visual, after]),
            span,
            config,
            max_new_tokens=MAX_NEW_TOKENS,
            end_ids=self.end_ids,
            tokens_per_block=tokens_per_block,
        )
        return generation, len(visual)

    @torch.no_grad()
    def embed_prompt(self, question: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [n, D] of the prompt before and after the visual tokens."""
        return self._embed(prompt_prefix()), self._embed(prompt_suffix(question))

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _embed(self, text: str) -> torch.Tensor:
        ids = self.tokenizer(text, return_tensors="pt").input_ids[0]
        return self.model.get_input_embeddings()(ids)  # type: ignore[no-any-return]


def answer(answerer: Answerer, seed: int, settings: list[Setting]) -> list[Outcome]:
    """One held-out sample under every setting."""
    sample = make_sample(seed)
    features = answerer.features(sample)
    outcomes = []
    for setting in settings:
        generation, visual = answerer.generate(features, sample.question, setting)
        text, steps = answerer.decode(generation.tokens), generation.steps
        pruned = [step for step in steps if step.pruned]
        outcomes.append(
            Outcome(
                task=sample.task,
                score=score(sample.task, sample.answer, text),
                answer=text,
                visual_tokens=visual,
                steps=len(generation.tokens) - 1,
                pruned=len(pruned),
                attended=sum(len(step.kept) for step in pruned),
                entered=tokens_that_entered(steps),
                gate_hits=gate_hits(steps, setting.config.gate_threshold),
                full_steps=steps_attending_everything(steps),
                mass_kept=sum(step.mass_kept for step in pruned),
            )
        )
    return outcomes


def run_suite(
    model_dir: Path,
    samples: int,
    seed: int,
    settings: list[Setting],
    workers: int = 1,
    load: Callable[[Path], Answerer] = Answerer,
) -> Iterator[list[Outcome]]:
    """Yields, per sample, its outcomes in the order of `settings`; samples are held-out ones.

    seed: the first sample, counted from the start of the held-out seeds. load: makes the answerer
    from the model's directory, once per worker; it is pickled for them.
    """
    first = HELD_OUT_SEEDS.start + seed
    seeds = range(first, first + samples)
    if workers == 1:
        answerer = load(model_dir)
        for one in seeds:
            yield answer(answerer, one, settings)
        return
    # Spawned, because a forked torch may hang in its thread pool.
    with ProcessPoolExecutor(
        workers,
        get_context("spawn"),
        initializer=_start_worker,
        initargs=(load, model_dir, settings),
    ) as pool:
        yield from pool.map(_work, seeds, chunksize=4)


_worker: dict[str, Any] = {}


def _start_worker(
    load: Callable[[Path], Answerer], model_dir: Path, settings: list[Setting]
) -> None:
    torch.set_num_threads(1)
    _worker["job"] = (load(model_dir), settings)


def _work(seed: int) -> list[Outcome]:
    answerer, settings = _worker["job"]
    return answer(answerer, seed, settings)
