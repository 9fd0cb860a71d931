"""Pooled visual features of many training videos, computed once and kept on disk.

After stage 1 the tower stays as it is, so a video's visual tokens never change: the language
model can be trained on stored features, several times faster than with the tower in every step.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from .mp4 import round_trip
from .network import TOKENS_PER_FRAME, WIDTH, frame_features
from .normalise import to_pixels
from .scenes import FRAMES, render
from .shapes import scene_for

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration

_CHUNK = 64  # videos per write


def build_pool(
    model: LlavaOnevisionForConditionalGeneration, seeds: range, path: Path
) -> NDArray[np.float16]:
    """Features fp16 [len(seeds), 16, 36, 128] of the scenes of `seeds`, as a file mapped read-only.

    The processes take turns at chunks of 64 videos. A chunk that is finished is a row of the file
    `path` + ".done" and is not computed again; delete both when the tower changes.
    """
    shape = (len(seeds), FRAMES, TOKENS_PER_FRAME, WIDTH)
    done = path.with_suffix(".done")
    if dist.get_rank() == 0 and not done.is_file():
        open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
        done.touch()
    dist.barrier()
    finished = set(done.read_text().split())
    dist.barrier()  # nobody appends before everybody has read
    pool = open_memmap(path, mode="r+")
    for chunk in range(dist.get_rank(), -(-len(seeds) // _CHUNK), dist.get_world_size()):
        if str(chunk) in finished:
            continue
        rows = slice(chunk * _CHUNK, (chunk + 1) * _CHUNK)
        pool[rows] = video_features(model, np.stack([decoded_video(s) for s in seeds[rows]]))
        with done.open("a") as file:
            file.write(f"{chunk}\n")
    dist.barrier()
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def decoded_video(seed: int) -> NDArray[np.uint8]:
    """The video of a seed as its decoder hands it back, uint8 [16, 96, 96, 3]."""
    return round_trip(render(scene_for(seed)))


@torch.no_grad()
def video_features(
    model: LlavaOnevisionForConditionalGeneration, videos: NDArray[np.uint8]
) -> Tensor:
    """uint8 [B, F, H, W, 3] -> fp16 [B, F, 36, 128], computed in bf16 a few videos at a time."""
    parts = []
    for at in range(0, len(videos), 8):
        pixels = to_pixels(videos[at : at + 8])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pooled = frame_features(model, pixels.flatten(0, 1))
        parts.append(pooled.reshape(*pixels.shape[:2], *pooled.shape[1:]).half())
    return torch.cat(parts)
