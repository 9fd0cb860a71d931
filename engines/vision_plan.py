"""The vision plan: vision_ttm.onnx as a TensorRT engine, through Polygraphy's TensorRT loaders.

Strongly typed: every tensor keeps the type that the graph gives it, so the export's fp32 islands
(normalisation, softmax, similarities, ranking) stay fp32, which SigLIP needs: NVIDIA/TensorRT issue
4328 has its outputs wrong where a builder was free to choose fp16.

Followed: polygraphy/backend/trt (loader.py, config.py, profile.py) of Polygraphy 0.49 to 0.53.
TensorRT and Polygraphy are imported when a plan is built, and not before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle.manifest import Manifest
from ..bundle.paths import FRAMES, VISION_GRAPH, VISION_PLAN
from ..core.errors import DyCokeError

TIMING_CACHE = "timing.cache"  # beside the targets' directories: builds of one GPU share it
_SHORT, _MEDIUM = 8, 32  # frames: where the ranges of the profiles end
_WORKSPACE = 4 * 2**30  # bytes a tactic may take for scratch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ProfileRange:
    """Shapes of `frames`, uint8 [batch, frames, 3, S, S], that one profile is tuned for."""

    least: Shape
    best: Shape
    most: Shape


def profile_ranges(image_size: int, max_frames: int, max_batch: int = 1) -> list[ProfileRange]:
    """Profiles that cover every multiple of 4 from 4 to max_frames, without overlap.

    A plan tuned for 64 frames is slow at 4, so short, medium and long videos have a profile each;
    each is tuned at its upper end, where time is spent. Triton sends one video per request; a
    larger batch, tuned at 1, is for who runs the plan alone.
    Raises DyCokeError for a number of frames or a batch that no plan can have.
    """
    if max_frames < 4 or max_frames % 4:
        raise DyCokeError(f"max_frames={max_frames} is not allowed; allowed: a multiple of 4")
    if max_batch < 1:
        raise DyCokeError(f"max_batch={max_batch} is not allowed; allowed: an integer >= 1")

    def shape(batch: int, frames: int) -> Shape:
        return (batch, frames, 3, image_size, image_size)

    ends = [end for end in (_SHORT, _MEDIUM) if end < max_frames] + [max_frames]
    begins = [4, *(end + 4 for end in ends[:-1])]
    return [
        ProfileRange(shape(1, begin), shape(1, end), shape(max_batch, end))
        for begin, end in zip(begins, ends, strict=True)
    ]


def config_options(profiles: list[Any], cache: Path, *, memory_pool: Any) -> dict[str, Any]:
    """Arguments of Polygraphy's CreateConfig. No precision flag: the network is strongly typed,
    where TensorRT refuses them. memory_pool: trt.MemoryPoolType.WORKSPACE."""
    options: dict[str, Any] = {
        "profiles": profiles,
        "memory_pool_limits": {memory_pool: _WORKSPACE},
    }
    if cache.is_file():
        options["load_timing_cache"] = str(cache)
    return options


def build_vision_plan(bundle: Path, manifest: Manifest, directory: Path, cache: Path) -> Path:
    """Builds `directory`/vision_ttm.plan on this machine's GPU; returns its path.

    cache: timing cache, read if it is there and written back. Raises DyCokeError if TensorRT cannot
    parse or build the graph, with the first line of its reason.
    """
    import tensorrt as trt
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineBytesFromNetwork,
        NetworkFromOnnxPath,
        Profile,
    )
    from polygraphy.exception import PolygraphyException

    source = bundle / VISION_GRAPH
    ranges = profile_ranges(manifest.vision.image_size, manifest.vision.max_frames)
    profiles = [Profile().add(FRAMES, min=r.least, opt=r.best, max=r.most) for r in ranges]
    options = config_options(profiles, cache, memory_pool=trt.MemoryPoolType.WORKSPACE)
    try:
        plan = EngineBytesFromNetwork(
            NetworkFromOnnxPath(str(source), strongly_typed=True),
            config=CreateConfig(**options),
            save_timing_cache=str(cache),
        )()
    except PolygraphyException as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise DyCokeError(f"{source}: TensorRT {trt.__version__} built no plan: {reason}") from None
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / VISION_PLAN
    path.write_bytes(bytes(plan))
    return path
