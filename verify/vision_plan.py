"""A vision engine against ONNX Runtime on the same GPU, on the same frames.

The engine is TensorRT's plan or that of TensorRT for RTX, loaded and run as it is served. ONNX
Runtime hands out no bfloat16: there, the same weights in torch take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..bundle.manifest import Manifest
from ..bundle.paths import FRAMES, VISION_GRAPH, VISUAL_EMBEDS
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from ..runtime.vision import Vision
from ..runtime.vision_torch import TorchVision
from .check import Check

Array = NDArray[Any]
# Largest |difference| over the largest |value| of rows that both sides kept. Two correct fp16 or
# bf16 towers of 26 layers differ by some units of the type's rounding: 2^-10, 2^-7.
BOUNDS = {Dtype.FP32: 1e-3, Dtype.FP16: 2e-2, Dtype.BF16: 1e-1}
# Rows that have to be the same token. Between fp32 and 16 bits 0.7 % (fp16) and 2.6 % (bf16) of the
# demo model's are not, at worst; two towers of one type differ by less.
SHARES = {Dtype.FP32: 0.99, Dtype.FP16: 0.98, Dtype.BF16: 0.95}
_MOVED = 2  # places that a row may be away
_SAME = 0.98  # cosine of rows of one token


def check_vision_engine(
    vision: Vision, bundle: Path, manifest: Manifest, device: str = "cuda"
) -> Iterator[Check]:
    """Yields, for each profile's longest video: how far embeddings differ, and whether shapes fit.

    vision: of runtime/vision.py. Raises DyCokeError where ONNX Runtime has no provider for the
    device.
    """
    reference = reference_vision(bundle, manifest.vision.dtype, device)
    bound = BOUNDS[manifest.vision.dtype]
    for frames in _longest(manifest):
        clip = synthetic_frames(frames, manifest.vision.image_size)
        embeddings = vision(torch.from_numpy(clip)).float().cpu().numpy()
        measured = relative_difference(embeddings, reference(clip), SHARES[manifest.vision.dtype])
        yield Check(f"vision engine, {frames} frames", measured <= bound, measured, bound, "rel")


def reference_vision(bundle: Path, dtype: Dtype, device: str = "cuda") -> Callable[[Array], Array]:
    """frames uint8 [1, F, 3, S, S] -> fp32 [1, V, hidden]. dtype: of the bundle's graph.

    Raises DyCokeError where ONNX Runtime has no provider for the device.
    """
    if dtype == Dtype.BF16:
        vision = TorchVision.from_bundle(bundle, device)
        return lambda clip: np.asarray(vision(torch.from_numpy(clip)).float().cpu())
    import onnxruntime

    provider = f"{device.upper()}ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise DyCokeError(
            f"ONNX Runtime has no {provider} here, and the plan is compared with it on the GPU; "
            "run: pip install onnxruntime-gpu"
        )
    session = onnxruntime.InferenceSession(str(bundle / VISION_GRAPH), providers=[provider])

    def run(clip: Array) -> Array:
        (rows,) = session.run([VISUAL_EMBEDS], {FRAMES: clip})
        return np.asarray(rows, np.float32)

    return run


def synthetic_frames(frames: int, side: int) -> Array:
    """uint8 [1, F, 3, S, S]: noise that drifts, so that no two tokens tie and frames resemble."""
    random = np.random.default_rng(0)
    still = random.integers(60, 200, (1, 1, 3, side, side))
    drift = random.integers(-6, 7, (1, frames, 3, side, side)).cumsum(1)
    clip: Array = np.clip(still + drift, 0, 255).astype(np.uint8)
    return clip


def relative_difference(measured: Array, expected: Array, share: float = 0.99) -> float:
    """Of the rows that are the same token on both sides: the largest |difference| over the largest
    |value|; infinite for other shapes, or where fewer than `share` of the rows are.

    [1, V, hidden] each. Rounding swaps tokens whose similarities differ by less than it. As tokens
    stay in order, a swap moves the rows between the two tokens by one place: so each row is
    compared with the nearest (by cosine) of those around its place.
    """
    expected = np.asarray(expected, np.float32)
    if measured.shape != expected.shape or not np.isfinite(measured).all():
        return float("inf")
    rows, others = measured[0], expected[0]
    cosine = _directions(rows) @ _directions(others).T
    place = np.arange(len(rows))
    cosine[np.abs(place[:, None] - place) > _MOVED] = -1
    nearest = cosine.argmax(-1)
    same = cosine[place, nearest] >= _SAME
    if same.mean() < share:
        return float("inf")
    difference = np.abs(rows - others[nearest])[same].max()
    return float(difference / max(float(np.abs(others).max()), 1e-12))


def _directions(rows: Array) -> Array:
    directions: Array = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return directions


def _longest(manifest: Manifest) -> list[int]:
    from ..engines.vision_plan import profile_ranges

    vision = manifest.vision
    return [r.best[1] for r in profile_ranges(vision.image_size, vision.max_frames)]
