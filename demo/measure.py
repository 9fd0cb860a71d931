"""Accuracy of a trained model on held-out samples, by transformers' own greedy generation.

`python -m dycoke_trt.demo.measure --samples 1000 --k 0 0.5 0.7 0.9 --random 0.9`
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .model import frame_features, load_model, visual_tokens
from .mp4 import round_trip
from .preprocess import to_pixels
from .pruning import ttm
from .shapes import HELD_OUT_SEEDS, SHORT_TASKS, TASKS, Sample, make_sample, score
from .tokenizer import VIDEO, build_prompt, load_tokenizer

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 72  # the longest description has 60


@dataclass(frozen=True)
class Setting:
    """Which visual tokens the model gets: pruned at rate k (0: all), or as many at random."""

    k: float
    random: bool = False

    @property
    def name(self) -> str:
        return "full" if self.k == 0 else f"{'random' if self.random else 'ttm'} k={self.k:g}"


class Answerer:
    """Answers batches of samples with one model."""

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        tokenizer.padding_side = "left"

    @torch.no_grad()
    def __call__(
        self, samples: list[Sample], seeds: list[int], settings: list[Setting]
    ) -> dict[Setting, list[str]]:
        """The model's answer to each sample under each setting."""
        pixels = torch.stack([to_pixels(round_trip(s.frames)) for s in samples])
        prompts = [build_prompt(s.question, visual_tokens(pixels.shape[1])) for s in samples]
        batch = self._tokenizer(prompts, return_tensors="pt", padding=True)
        full = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        answers = {}
        features = None
        for setting in settings:
            if setting.k == 0:
                answers[setting] = self._generate(full | {"pixel_values_videos": pixels})
                continue
            if features is None:
                flat = frame_features(self._model, pixels.flatten(0, 1))
                features = flat.reshape(*pixels.shape[:2], *flat.shape[1:])
            kept = [_kept(f, setting, s) for f, s in zip(features, seeds, strict=True)]
            answers[setting] = self._generate(self._pruned(full, features, kept))
        return answers

    def _pruned(
        self, full: dict[str, Tensor], features: Tensor, kept: list[Tensor]
    ) -> dict[str, Tensor]:
        """Embeddings of the prompts with the pruned run of visual tokens in place of <video>."""
        video = self._tokenizer.convert_tokens_to_ids(VIDEO)
        embed = self._model.get_input_embeddings()
        newline = self._model.model.image_newline[None]
        rows, masks = [], []
        for i, ids in enumerate(full["input_ids"]):
            (at,) = torch.where(ids == video)
            visual = torch.cat([features[i].flatten(0, 1)[kept[i]], newline])
            before, after = slice(None, int(at[0])), slice(int(at[-1]) + 1, None)
            rows.append(torch.cat([embed(ids[before]), visual, embed(ids[after])]))
            mask = full["attention_mask"][i]
            masks.append(torch.cat([mask[before], torch.ones(len(visual)).long(), mask[after]]))
        return {"inputs_embeds": torch.stack(rows), "attention_mask": torch.stack(masks)}

    def _generate(self, inputs: dict[str, Tensor]) -> list[str]:
        out = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :] if "input_ids" in inputs else out
        answers: list[str] = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return answers


def measure(
    folder: Path, seeds: range, settings: list[Setting], batch_size: int = 16
) -> dict[str, dict[str, dict[str, float]]]:
    """Per setting and task: `accuracy` (describe: share of statements right) and `n`."""
    answer = Answerer(load_model(folder), load_tokenizer(folder))
    scores: dict[tuple[Setting, str], list[float]] = defaultdict(list)
    # Neighbouring seeds have different tasks; sorted by task, the prompts of a batch are alike.
    ordered = sorted(seeds, key=lambda seed: (seed % len(TASKS), seed))
    for at in range(0, len(ordered), batch_size):
        chunk = ordered[at : at + batch_size]
        samples = [make_sample(seed) for seed in chunk]
        for setting, predictions in answer(samples, chunk, settings).items():
            for sample, predicted in zip(samples, predictions, strict=True):
                right = score(sample.task, sample.answer, predicted)
                scores[setting, sample.task].append(right)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for setting in settings:
        rows = {t: scores[setting, t] for t in TASKS if scores[setting, t]}
        table[setting.name] = {
            task: {"accuracy": round(float(np.mean(got)), 4), "n": len(got)}
            for task, got in rows.items()
        }
    return table


def _kept(features: Tensor, setting: Setting, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed) if setting.random else None
    return ttm(features, setting.k, generator=generator)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dycoke_trt.demo.measure", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=Path(__file__).parent / "model")
    add("--samples", type=int, default=1_000)
    add("--skip", type=int, default=0, help="held-out seeds to leave out at the start")
    add("--k", type=float, nargs="*", default=[0.0], help="TTM rates; 0: all tokens")
    add("--random", type=float, nargs="*", default=[], help="rates for random tokens")
    add("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = [Setting(k) for k in options.k] + [Setting(k, True) for k in options.random]
    first = HELD_OUT_SEEDS.start + options.skip
    table = measure(options.model, range(first, first + options.samples), settings)
    print(json.dumps(table, indent=1))
    for name, tasks in table.items():
        mean = np.mean([tasks[t]["accuracy"] for t in SHORT_TASKS if t in tasks])
        cells = "  ".join(f"{task} {cell['accuracy']:.3f}" for task, cell in tasks.items())
        print(f"{name:14s} short {mean:.3f}  {cells}")


if __name__ == "__main__":
    main()
