"""The vision graph in ONNX Runtime against the source model, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bundle.manifest import Manifest
from ..bundle.paths import FRAMES, VISION_GRAPH, VISUAL_EMBEDS
from ..core.dtype import Dtype
from .check import Check
from .source import Source, vision_stages

# Largest absolute difference allowed, relative to the largest absolute value of the stage. fp16
# has 11 significant bits; a tower of two dozen layers loses a few more.
BOUNDS = {Dtype.FP32: 1e-4, Dtype.FP16: 2e-2}


def sample_frames(image_size: int) -> Tensor:
    """uint8 [1, 8, 3, S, S]: a smooth picture that drifts, with a block that jumps.

    Neighbouring frames differ enough that TTM's cut has a margin.
    """
    frames = 8
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, size=(image_size, image_size), mode="bicubic")
    noise = torch.rand(frames, 3, image_size, image_size, generator=generator)
    video = (picture * 0.8 + noise * 0.2).clamp(0, 1)
    block = image_size // 4
    for f in range(frames):
        at = (f * block) % (image_size - block)
        video[f, :, at : at + block, at : at + block] = f / frames
    return (video * 255).round().to(torch.uint8)[None]


def check_vision(bundle: Path, manifest: Manifest, source: Source) -> list[Check]:
    """One check per stage of the graph.

    Bundles in bfloat16 cannot run in ONNX Runtime on a CPU: for them the graph is only checked by
    onnx.checker and shape inference.
    """
    import onnx

    path = bundle / VISION_GRAPH
    if manifest.vision.dtype == Dtype.BF16:
        onnx.checker.check_model(str(path), full_check=True)
        return [
            Check("vision graph is valid ONNX (bf16 is not run on a CPU)", True, 0, 0, "errors")
        ]
    frames = sample_frames(manifest.vision.image_size)
    scale = source.scale
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (scale.mean, scale.std))
    expected = vision_stages(source, (frames * scale.rescale - mean) / std, manifest.config)
    graph = onnx.load(path)
    names = json.loads({p.key: p.value for p in graph.metadata_props}["layer_outputs"])
    names = [name for name in names if name in expected] + [VISUAL_EMBEDS]
    outputs = _run(graph, names, frames.numpy())
    bound = BOUNDS[manifest.vision.dtype]
    return [_compare(name, outputs[name], expected[name], bound) for name in names]


def _run(graph: Any, names: list[str], frames: Any) -> Any:
    from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.logger import G_LOGGER

    # Polygraphy logs to stdout, where the table or JSON of the command goes.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        session = SessionFromOnnx(
            BytesFromOnnx(ModifyOutputs(graph, outputs=names)), providers=["CPUExecutionProvider"]
        )
        with OnnxrtRunner(session) as runner:
            return runner.infer({FRAMES: frames})


def _compare(name: str, graph: Any, expected: Tensor, bound: float) -> Check:
    """One output; the bound is relative to the stage's magnitude, and NaN passes no bound."""
    values, difference = torch.as_tensor(np.asarray(graph, np.float32)), float("inf")
    if values.shape == expected.shape:
        difference = float((values - expected).abs().max() / expected.abs().max())
    return Check(f"vision {name}", difference <= bound, difference, bound, "of the largest value")
