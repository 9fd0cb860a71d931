"""Writes `vision_ttm.onnx`: uint8 frames in, visual embeddings out, TTM included."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.config import DyCokeConfig
from ..core.errors import DyCokeError
from ..core.ttm import tokens_kept_per_frame
from .checkpoint import Checkpoint
from .dtypes import TORCH_DTYPES, DTypeName
from .names import vision_shapes
from .onnx_graph import GraphBuilder, value_info
from .preprocessing import PixelScale, read_pixel_scale
from .vision_graph import VisionGraph

# Beyond this the weights go to vision_ttm.onnx.data; protobuf's own limit is 2 GB.
EXTERNAL_BYTES = 64 << 20
INPUT, OUTPUT, ROWS = "frames", "visual_embeds", "kept_rows"


@dataclass(frozen=True)
class VisionExport:
    """What was written.

    files: names in the directory, the model first. dtype: of the output and of the weights.
    tokens_per_frame: N. n_keep: tokens kept of a compared frame, None where TTM drops nothing.
    layer_outputs: values of the graph for a layer-by-layer comparison, in order.
    """

    files: tuple[str, ...]
    dtype: DTypeName
    tokens_per_frame: int
    n_keep: int | None
    layer_outputs: tuple[str, ...]
    pixel_scale: PixelScale


def export_vision(
    checkpoint: Checkpoint,
    path: Path,
    config: DyCokeConfig,
    dtype: DTypeName,
    *,
    kept_rows: bool = False,
    external_bytes: int = EXTERNAL_BYTES,
) -> VisionExport:
    """Writes `path` (and `path`.data if the weights exceed `external_bytes`).

    Input `frames`: uint8 [B,F,3,H,W], resized, F a multiple of 4. Output `visual_embeds`:
    `dtype` [B,M+1,D]; M = ttm_count(F, N, k, ttm). kept_rows adds, where TTM
    drops tokens, the output `kept_rows`, int64 [B,M]: the survivors' indices into the F*N rows.
    Raises DyCokeError for a checkpoint without vision tower, ttm reference or random, and weights
    that fp16 cannot hold.
    """
    vision = checkpoint.vision
    if vision is None:
        raise DyCokeError(f"{checkpoint.directory}: a bare LLM has no vision tower to export")
    if config.ttm not in ("paper", "off"):
        raise DyCokeError(
            f"ttm={config.ttm!r} cannot be exported; allowed: paper, off (reference and random "
            "exist in the native oracle only)"
        )
    tokens = vision.dims.tokens_per_frame
    keep = tokens_kept_per_frame(tokens, config.k) if config.ttm == "paper" else tokens
    n_keep = keep if keep < tokens else None
    # LLaVA-NeXT's code has SigLIP's scale built in, whatever files lie there.
    scale = PixelScale()
    if checkpoint.kind == "hf":
        patches = vision.dims.patches
        scale = read_pixel_scale(checkpoint.directory, vision.image_size, patches)
    torch_dtype, hidden = TORCH_DTYPES[dtype], checkpoint.llm.dims.hidden
    shapes = vision_shapes(vision, hidden).values()
    size = sum(math.prod(shape) for shape in shapes) * torch_dtype.itemsize
    data_path = path.with_name(f"{path.name}.data") if size > external_bytes else None

    with GraphBuilder("vision_ttm", data_path) as graph:
        stages = VisionGraph(graph, _weights(checkpoint, torch_dtype), vision, hidden, torch_dtype)
        pooled = stages.pooling(stages.projector(stages.tower(stages.pixels(INPUT, scale))))
        # Taken from the float copy: TensorRT has UINT8 only as a network input, for Cast.
        batch = graph.node("Shape", "batch", "pixels/float", start=0, end=1)
        outputs = [value_info(OUTPUT, torch_dtype, ["batch", "visual_tokens", hidden])]
        if n_keep is None:
            merged = stages.per_video("pooling/by_video", pooled, batch, hidden)
        else:
            merged = stages.ttm(pooled, n_keep, batch, ROWS if kept_rows else None)
            if kept_rows:
                outputs.append(value_info(ROWS, torch.int64, ["batch", "survivors"]))
        stages.newline(merged, batch, OUTPUT)
        side = vision.image_size
        inputs = [value_info(INPUT, torch.uint8, ["batch", "frames", 3, side, side])]
        props = {
            "dycoke": config.to_json(),
            "source_revision": checkpoint.revision,
            "source_kind": checkpoint.kind,
            "dtype": dtype,
            "tokens_per_frame": str(tokens),
            "n_keep": str(keep),
            "layer_outputs": json.dumps(stages.layer_outputs),
        }
        graph.save(path, inputs, outputs, props)
    files = (path.name,) if data_path is None else (path.name, data_path.name)
    return VisionExport(files, dtype, tokens, n_keep, tuple(stages.layer_outputs), scale)


def mark_outputs(model: Any, names: Sequence[str]) -> None:
    """Adds inner values of an exported model (an onnx.ModelProto) to its outputs, in place."""
    import onnx

    known = {value.name for value in model.graph.output}
    inferred = onnx.shape_inference.infer_shapes(model)
    values = {value.name: value for value in inferred.graph.value_info}
    model.graph.output.extend(values[name] for name in names if name not in known)


def _weights(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """A function canonical name -> tensor in `dtype`, finite."""

    def read(name: str) -> Tensor:
        tensor = checkpoint.tensor(name).to(dtype)
        if not bool(tensor.isfinite().all()):
            raise DyCokeError(
                f"{checkpoint.directory}: tensor {name} is not finite in {dtype}; export with "
                "bf16 or fp32, or check the checkpoint"
            )
        return tensor

    return read
