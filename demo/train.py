"""Trains the embedded default model: `python -m dycoke_trt.demo.train --work FOLDER`.

Stage 1 teaches tower and projector single frames, then features of all training videos are
stored, and stage 2 teaches the language model on them. Everything in the work folder can be
resumed: run the same command again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import parallel
from .features import build_pool
from .network import build_model, save_model
from .packing import Packer
from .pretrain import fit_post_layernorm, pretrain
from .qa_training import Schedule, Videos, train
from .shapes import HELD_OUT_SEEDS, TRAIN_SEEDS
from .tokenizer import load_tokenizer, train_tokenizer

_HERE = Path(__file__).parent
_QUESTION_SEEDS_FROM = 1_000_000  # below: the frames of stage 1
_HELD_OUT_FROM = 500_000  # the learning curve's videos; final figures use the first seeds


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    train_tokenizer(options.out)
    parallel.launch(options.workers, _train, options)


def _train(options: argparse.Namespace) -> None:
    """Both stages, in each of the processes."""
    log = _logger(options.log)
    tokenizer = load_tokenizer(options.out)
    model = build_model(tokenizer, options.seed)
    seeing = options.work / "tower.pt"
    if seeing.is_file():
        model.load_state_dict(torch.load(seeing, weights_only=True))
    else:
        pretrain(
            model,
            steps=options.pretrain_steps,
            videos=options.pretrain_videos,
            seed=options.seed,
            log=log,
        )
        if dist.get_rank() == 0:
            torch.save(model.state_dict(), seeing)
    model.eval()

    first = TRAIN_SEEDS.start + _QUESTION_SEEDS_FROM
    seeds = range(first, first + options.videos)
    first = HELD_OUT_SEEDS.start + _HELD_OUT_FROM
    test_seeds = range(first, first + options.test_videos)
    packer = Packer(tokenizer)
    pools = []
    for name, wanted in (("test", test_seeds), (f"train-{options.videos}", seeds)):
        features = build_pool(model, wanted, options.work / f"{name}.npy")
        pools.append(Videos(features, wanted, packer))
    held_out, videos = pools

    schedule = Schedule(
        steps=options.steps, videos_per_step=options.videos_per_step, seed=options.seed
    )
    train(model, packer, videos, held_out, schedule, options.work / "checkpoint.pt", log)
    if dist.get_rank() == 0:
        fit_post_layernorm(model, TRAIN_SEEDS[:16])
        save_model(model, options.out)


def _logger(path: Path) -> Callable[[dict[str, Any]], None]:
    """Prints every record and appends it to the learning curve; the first process only."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def log(record: dict[str, Any]) -> None:
        if dist.get_rank() != 0:
            return
        line = json.dumps(record)
        print(line, flush=True)
        with path.open("a") as file:
            file.write(line + "\n")

    return log


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dycoke_trt.demo.train", description=__doc__)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for features and checkpoints (3 GB)")
    add("--out", type=Path, default=_HERE / "model", help="where the finished model goes")
    add("--log", type=Path, default=_HERE / "train_log.jsonl", help="learning curve (JSON lines)")
    add("--seed", type=int, default=0, help="weights and order of the data")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    add("--pretrain-steps", type=int, default=250, help="steps of 96 frames in stage 1")
    add("--pretrain-videos", type=int, default=1_200, help="videos whose frames stage 1 uses")
    add("--videos", type=int, default=16_000, help="videos of stage 2")
    add("--test-videos", type=int, default=140, help="held-out videos of the learning curve")
    add("--steps", type=int, default=4_000, help="steps of stage 2")
    add("--videos-per-step", type=int, default=16)
    return parser


if __name__ == "__main__":
    main()
