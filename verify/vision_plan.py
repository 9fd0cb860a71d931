"""The vision plan against ONNX Runtime on the same GPU, on the same frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Manifest
from ..core.errors import DyCokeError
from ..engines.vision_plan import ONNX_FILE, PLAN_FILE
from .check import Check

Array = NDArray[Any]
# Largest |difference| over the largest |value| of rows that both sides kept. Two correct fp16 or
# bf16 towers of 26 layers differ by some units of the type's rounding: 2^-10, 2^-7.
BOUNDS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


def check_vision_plan(bundle: Path, manifest: Manifest, directory: Path) -> Iterator[Check]:
    """Yields, for each profile's longest video: how far embeddings differ, and whether shapes fit.

    Runs on the GPU. Raises DyCokeError where ONNX Runtime has no CUDA provider.
    """
    import onnxruntime
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DyCokeError(
            "ONNX Runtime has no CUDA provider here, and the plan is compared with it on the GPU; "
            "run: pip install onnxruntime-gpu"
        )
    session = onnxruntime.InferenceSession(
        str(bundle / ONNX_FILE), providers=["CUDAExecutionProvider"]
    )
    bound = BOUNDS[manifest.vision.dtype]
    with TrtRunner(EngineFromBytes(BytesFromPath(str(directory / PLAN_FILE)))) as runner:
        for index, frames in enumerate(_longest(manifest)):
            clip = synthetic_frames(frames, manifest.vision.image_size)
            (expected,) = session.run(["visual_embeds"], {"frames": clip})
            runner.set_profile(index)
            found = runner.infer({"frames": clip}, copy_outputs_to_host=True)["visual_embeds"]
            measured = relative_difference(np.asarray(found, np.float32), expected)
            yield Check(f"vision plan, {frames} frames", measured <= bound, measured, bound, "rel")


def synthetic_frames(frames: int, side: int, seed: int = 0) -> Array:
    """uint8 [1, F, 3, S, S]: noise that drifts, so that no two tokens tie and frames resemble."""
    random = np.random.default_rng(seed)
    still = random.integers(60, 200, (1, 1, 3, side, side))
    drift = random.integers(-6, 7, (1, frames, 3, side, side)).cumsum(1)
    clip: Array = np.clip(still + drift, 0, 255).astype(np.uint8)
    return clip


def relative_difference(found: Array, expected: Array) -> float:
    """Of the rows that agree on which token they are: the largest |difference| over the largest
    |value|; infinite for other shapes, or where fewer than 99 in 100 rows agree.

    Rounding may swap tokens whose similarities differ by less than it, so a few rows may be those
    of other tokens; rows count as other tokens when their cosine is below 0.9.
    """
    expected = np.asarray(expected, np.float32)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosine = (found * expected).sum(-1) / np.maximum(norms, 1e-12)
    same = cosine >= 0.9
    if same.mean() < 0.99:
        return float("inf")
    difference = np.abs(found - expected)[same].max()
    return float(difference / max(float(np.abs(expected).max()), 1e-12))


def _longest(manifest: Manifest) -> list[int]:
    from ..engines.vision_plan import profile_ranges

    vision = manifest.vision
    return [r.best[1] for r in profile_ranges(vision.image_size, vision.max_frames)]
