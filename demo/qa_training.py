"""Stage 2: the language model learns to answer, from stored visual features.

Every batch is drawn from (seed, step), so a resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from . import parallel
from .packing import Encoded, Packer, packed_attention
from .pruning import ttm
from .shapes import TASKS, Task, questions, scene_for

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration

# A batch is pruned with probability one half, at one of these rates.
_RATES = (0.3, 0.5, 0.7)
_ASKED_TWICE: tuple[Task, ...] = ("colour", "shape")  # at most two of these per video and step


@dataclass(frozen=True)
class Schedule:
    """Optimisation of stage 2. The easy videos are those with at most three shapes."""

    steps: int
    videos_per_step: int = 16
    peak: float = 1.5e-3
    warm_up: int = 100
    easy_steps: int = 200
    balanced_from: int = 1300
    seed: int = 0
    save_every: int = 100
    test_every: int = 400

    def rate(self, step: int) -> float:
        warm = min(1.0, step / self.warm_up)
        return self.peak * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * step / self.steps)))


class Videos:
    """Stored features of consecutive seeds, with their questions encoded on demand."""

    def __init__(self, features: NDArray[np.float16], seeds: range, packer: Packer) -> None:
        self._features = features
        self._seeds = seeds
        self._packer = packer
        self._known: dict[str, Encoded] = {}
        counts = [len(scene_for(seed).items) for seed in seeds]
        self.easy = np.flatnonzero(np.array(counts) <= 3)

    def __len__(self) -> int:
        return len(self._seeds)

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, list[list[Encoded]]]:
        """Features fp32 [B, F, 36, D] and all questions of each video."""
        asked = []
        for row in rows:
            encoded = []
            for question in questions(scene_for(self._seeds[int(row)])):
                key = f"{question.question}\n{question.answer}"
                if key not in self._known:
                    self._known[key] = self._packer.encode(question)
                encoded.append(self._known[key])
            asked.append(encoded)
        return torch.from_numpy(self._features[rows].astype(np.float32)), asked


def train(
    model: LlavaOnevisionForConditionalGeneration,
    packer: Packer,
    videos: Videos,
    held_out: Videos,
    schedule: Schedule,
    checkpoint: Path,
    log: Callable[[dict[str, Any]], None],
) -> None:
    """Trains language model and image_newline in place, resuming from `checkpoint` if it exists."""
    weights = [*model.model.language_model.parameters(), model.model.image_newline]
    optimiser = torch.optim.AdamW(weights, lr=schedule.peak, weight_decay=0.05, betas=(0.9, 0.98))
    first, spent = 1, 0.0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first, spent = saved["step"] + 1, saved["seconds"]
    started = time.monotonic() - spent
    model.train()
    losses: list[float] = []
    for step in range(first, schedule.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        rng = np.random.default_rng([schedule.seed, 5, step])
        features, asked = _draw(videos, rng, schedule, step)
        k = float(rng.choice(_RATES)) if rng.random() < 0.5 else 0.0
        with torch.autocast("cpu", dtype=torch.bfloat16), packed_attention(model):
            loss = packer.answers(model, visible(features, k), asked).loss(
                balanced=step > schedule.balanced_from
            )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        parallel.average_gradients(weights)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 20 == 0:
            seconds = round(time.monotonic() - started, 1)
            mean = round(float(np.mean(losses[-20:])), 4)
            record: dict[str, Any] = {"stage": "answer", "step": step, "loss": mean}
            log(record | {"rate": round(schedule.rate(step), 6), "seconds": seconds})
        if dist.get_rank() == 0 and (step % schedule.save_every == 0 or step == schedule.steps):
            _save(checkpoint, model, optimiser, step, time.monotonic() - started)
        if step % schedule.test_every == 0 or step == schedule.steps:
            for rate in (0.0, 0.7):
                measured = test(model, packer, held_out, rate)
                log({"stage": "test", "step": step, "k": rate, "accuracy": measured})
            model.train()
    model.eval()


def visible(features: Tensor, k: float) -> Tensor:
    """What the language model sees of features [B, F, N, D]: [B, M, D], pruned at rate k."""
    if k == 0:
        return features.flatten(1, 2)
    return torch.stack([video.flatten(0, 1)[ttm(video, k)] for video in features])


@torch.no_grad()
def test(
    model: LlavaOnevisionForConditionalGeneration, packer: Packer, held_out: Videos, k: float
) -> dict[str, float]:
    """Share of answers entirely right per task, all questions of the held-out videos."""
    model.eval()
    right: dict[str, list[float]] = defaultdict(list)
    mine = np.arange(dist.get_rank(), len(held_out), dist.get_world_size())
    for at in range(0, len(mine), 16):
        features, asked = held_out.batch(mine[at : at + 16])
        with torch.autocast("cpu", dtype=torch.bfloat16), packed_attention(model):
            answers = packer.answers(model, visible(features, k), asked)
        for task, hit in zip(answers.tasks, answers.right().tolist(), strict=True):
            right[task].append(hit)
    parts = parallel.gather(dict(right))
    hits = {task: [hit for part in parts for hit in part.get(task, [])] for task in TASKS}
    return {task: round(float(np.mean(hits[task])), 4) for task in TASKS if hits[task]}


def _draw(
    videos: Videos, rng: np.random.Generator, schedule: Schedule, step: int
) -> tuple[Tensor, list[list[Encoded]]]:
    allowed = videos.easy if step <= schedule.easy_steps else np.arange(len(videos))
    rows = rng.choice(allowed, schedule.videos_per_step, replace=False)
    features, asked = videos.batch(rows[dist.get_rank() :: dist.get_world_size()])
    chosen = []
    for row in asked:
        kept = [q for q in row if q.task not in _ASKED_TWICE]
        for task in _ASKED_TWICE:
            several = [q for q in row if q.task == task]
            kept += [several[i] for i in rng.permutation(len(several))[:2]]
        chosen.append(kept)
    return features, chosen


def _save(
    path: Path,
    model: LlavaOnevisionForConditionalGeneration,
    optimiser: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    """Whole or not at all: a run may be stopped at any moment."""
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    part = path.with_suffix(".part")
    torch.save(state | {"step": step, "seconds": seconds}, part)
    part.replace(path)
