"""Stage 1: tower and projector learn what stands in each pooled token of single frames.

Real video LLMs start from a tower that already sees. Here it learns to: for every one of the 36
pooled tokens of a frame, which shape and which colour is centred in it (or none), and on which
side it lies. The labels are read off by three linear heads, thrown away afterwards, from the
normalised features, which is exactly how the language model's first layer reads them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from . import parallel
from .mp4 import round_trip
from .network import WIDTH, frame_features
from .normalise import to_pixels
from .scenes import COLOURS, FRAMES, GRID, SHAPES, Scene, crowded_scene, render
from .shapes import HELD_OUT_SEEDS, TRAIN_SEEDS, scene_for

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration

FRAMES_PER_STEP = 96
_PEAK = 2e-3  # learning rate
_HELD_OUT_FROM = 600_000  # seeds that no figure is measured on
_TARGETS = ("shape", "colour", "side")
_CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1, 2)  # 0: nothing there
Labels = NDArray[np.int64]


def frame_labels(scene: Scene) -> Labels:
    """int64 [F, 36, 3]: shape and colour (0: none) and side of the item centred in each cell."""
    labels = np.zeros((FRAMES, GRID, GRID, 3), dtype=np.int64)
    labels[:, :, GRID // 2 :, 2] = 1
    names = list(COLOURS)
    for item in scene.items:
        for frame in range(item.start, item.end):
            colour = item.colour_at(frame)
            assert colour is not None
            cell = labels[frame, item.row, item.column]
            cell[:2] = SHAPES.index(item.shape) + 1, names.index(colour) + 1
    return labels.reshape(FRAMES, GRID * GRID, 3)


def labelled_frames(seed: int) -> tuple[NDArray[np.uint8], Labels]:
    """One video's decoded frames and labels: crowded for odd seeds, as in the suite for even."""
    scene = crowded_scene(seed) if seed % 2 else scene_for(seed)
    return round_trip(render(scene)), frame_labels(scene)


def pretrain(
    model: LlavaOnevisionForConditionalGeneration,
    *,
    steps: int,
    videos: int,
    seed: int,
    log: Callable[[dict[str, float | int | str]], None],
) -> None:
    """Trains tower and projector in place; `log` gets one record about every 50 steps.

    Every process draws its share of the frames from its own share of the videos.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    share = range(TRAIN_SEEDS.start + 2 * rank, TRAIN_SEEDS.start + videos, 2 * world)
    frames, labels = _gather([seed + odd for seed in share for odd in (0, 1)])
    held_out = _gather(HELD_OUT_SEEDS[_HELD_OUT_FROM : _HELD_OUT_FROM + 20])
    per_step = FRAMES_PER_STEP // world
    inner = model.model
    heads = nn.ModuleList(nn.Linear(WIDTH, classes) for classes in _CLASSES)
    weights = [
        *inner.vision_tower.parameters(),
        *inner.multi_modal_projector.parameters(),
        *heads.parameters(),
    ]
    optimiser = torch.optim.AdamW(weights, lr=_PEAK, weight_decay=0.01, betas=(0.9, 0.98))
    draw = np.random.default_rng([seed, 3, rank])
    model.train()
    started = time.monotonic()
    for step in range(1, steps + 1):
        warm = min(1.0, step / 30)
        rate = _PEAK * warm * 0.5 * (1 + math.cos(math.pi * step / (steps + 1)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = np.sort(draw.choice(len(frames), per_step, replace=False))
        logits = _logits(model, heads, frames[rows])
        loss = _loss(logits, torch.as_tensor(labels[rows]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        parallel.average_gradients(weights)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        if step % 50 == 0 or step == steps:
            record: dict[str, float | int | str] = {"stage": "pretrain", "step": step}
            record |= {"loss": round(loss.item(), 4), **_accuracy(model, heads, held_out)}
            log(record | {"seconds": round(time.monotonic() - started, 1)})
    model.eval()


@torch.no_grad()
def fit_post_layernorm(model: LlavaOnevisionForConditionalGeneration, seeds: range) -> None:
    """Makes the tower's post_layernorm reproduce its input as well as an affine map can.

    LLaVA-OneVision reads the state before post_layernorm, so its weights are free. transformers
    4.57 reads the state after it; with these weights that differs by about 3 %, and the model
    answers there as well.
    """
    tower = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)
    frames, _ = _gather(seeds)
    hidden = tower.encoder(inputs_embeds=tower.embeddings(to_pixels(frames[::4])))
    wanted = hidden.last_hidden_state.flatten(0, 1)
    given = nn.functional.layer_norm(wanted, wanted.shape[-1:], eps=tower.post_layernorm.eps)
    centred = given - given.mean(0)
    weight = (centred * (wanted - wanted.mean(0))).mean(0) / centred.square().mean(0)
    tower.post_layernorm.weight.copy_(weight)
    tower.post_layernorm.bias.copy_(wanted.mean(0) - weight * given.mean(0))


def _gather(seeds: Iterable[int]) -> tuple[NDArray[np.uint8], Labels]:
    parts = [labelled_frames(seed) for seed in seeds]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _logits(
    model: LlavaOnevisionForConditionalGeneration,
    heads: nn.ModuleList,
    frames: NDArray[np.uint8],
) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = frame_features(model, to_pixels(frames))
    features = nn.functional.rms_norm(features.float(), (WIDTH,))
    return [head(features) for head in heads]


def _loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Mean over targets. Nearly every token is background: it counts a fifth of an item."""
    weight = torch.where(labels[..., 0] > 0, 1.0, 0.2)
    total = torch.zeros(())
    for i, values in enumerate(logits):
        losses = nn.functional.cross_entropy(
            values.flatten(0, 1), labels[..., i].flatten(), reduction="none"
        )
        total = total + (losses * weight.flatten()).sum() / weight.sum()
    return total / len(logits)


@torch.no_grad()
def _accuracy(
    model: LlavaOnevisionForConditionalGeneration,
    heads: nn.ModuleList,
    held_out: tuple[NDArray[np.uint8], Labels],
) -> dict[str, float]:
    """Share of tokens right where an item is, per target, and of background tokens."""
    right: dict[str, list[Tensor]] = {name: [] for name in (*_TARGETS, "background")}
    for at in range(0, len(held_out[0]), FRAMES_PER_STEP):
        labels = torch.as_tensor(held_out[1][at : at + FRAMES_PER_STEP])
        logits = _logits(model, heads, held_out[0][at : at + FRAMES_PER_STEP])
        item = labels[..., 0] > 0
        for i, name in enumerate(_TARGETS):
            right[name].append((logits[i].argmax(-1) == labels[..., i])[item])
        right["background"].append((logits[0].argmax(-1) == 0)[~item])
    return {name: round(float(torch.cat(r).float().mean()), 4) for name, r in right.items()}
