"""The vision step of a bundle: its weights, and `vision_ttm.onnx`, which refers to them.

The graph is what torch exports of arch/siglip.py; the module's weights take no memory then, and
the file's initializers point into the safetensors file beside it, so the weights exist once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..arch.siglip import VisionModel, stage_names
from ..arch.spec import PixelScale, VisionSpec
from ..bundle.atomic import atomic_bytes
from ..bundle.paths import VISION_WEIGHTS
from ..bundle.safetensors_file import SafetensorsFile, TensorPlan, write_safetensors
from ..compress.base import compressor_of
from ..compress.newlines import newline_count
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from .checkpoint import Checkpoint
from .processor import read_pixel_scale
from .vision_graph import finish_graph, trace_graph


@dataclass(frozen=True)
class VisionExport:
    """What was written. hashes: SHA-256 of the weights' file, by its name."""

    spec: VisionSpec
    hashes: dict[str, str]


def export_vision(
    checkpoint: Checkpoint,
    path: Path,
    config: DyCokeConfig,
    dtype: Dtype,
    *,
    kept_rows: bool = False,
) -> VisionExport:
    """Writes the graph `path` and, beside it, the weights that it refers to.

    Input `frames`: uint8 [B,F,3,H,W], resized, F a multiple of 4. Output `visual_embeds`:
    `dtype` [B,V,D]; V = compress.base.visual_tokens. kept_rows adds the output `kept_rows`,
    int64 [B,M]: the survivors' indices into the F*N rows.
    Raises DyCokeError for a checkpoint without vision tower, ttm reference or random, and weights
    that fp16 cannot hold.
    """
    tower = checkpoint.vision
    if tower is None:
        raise DyCokeError(f"{checkpoint.directory}: a bare LLM has no vision tower to export")
    tokens = tower.tokens_per_frame
    compressor = compressor_of(config, tokens)
    # LLaVA-NeXT's code has SigLIP's scale built in, whatever files lie there.
    scale = PixelScale()
    if checkpoint.kind == "hf":
        scale = read_pixel_scale(checkpoint.directory, tower.image_size, tower.patches)
    newline_count(checkpoint.config.newline, 4, tokens)  # refuses a layout that does not fit
    spec = VisionSpec(tower, checkpoint.llm.hidden, scale, compressor, checkpoint.config.newline)
    kind = dtype.torch
    weights = path.with_name(VISION_WEIGHTS)
    try:
        digest = write_safetensors(weights, weight_plans(checkpoint, VisionModel(spec, kind)))
        props = {
            "dycoke": config.to_json(),
            "source_revision": checkpoint.revision,
            "source_kind": checkpoint.kind,
            "dtype": dtype.short,
            "tokens_per_frame": str(tokens),
            "kept": json.dumps(compressor.kept),
            "layer_outputs": json.dumps(stage_names(tower.layers)),
        }
        graph = finish_graph(
            trace_graph(spec, kind), SafetensorsFile(weights), props, kept_rows=kept_rows
        )
        atomic_bytes(path, graph)
    except BaseException:
        weights.unlink(missing_ok=True)
        raise
    return VisionExport(spec, {weights.name: digest})


def weight_plans(checkpoint: Checkpoint, model: VisionModel) -> list[TensorPlan]:
    """The module's parameters from the checkpoint, one at a time, in the module's dtype.

    Raises DyCokeError, when they are written, for values that the dtype cannot hold.
    """

    def chunks(name: str, shape: torch.Size) -> Iterator[Tensor]:
        source = source_name(name)
        tensor = checkpoint.tensor(source)
        if len(shape) == 2 and name.endswith(".weight"):  # torch keeps [out, in]
            tensor = tensor.flatten(1).t()
        yield checkpoint.converted(tensor, model.dtype, source).contiguous()

    def plan(name: str, shape: torch.Size) -> TensorPlan:
        return TensorPlan(name, tuple(shape), model.dtype, lambda: chunks(name, shape))

    return [plan(name, parameter.shape) for name, parameter in model.named_parameters()]


def source_name(name: str) -> str:
    """The checkpoint's canonical name (export/names.py) of a parameter of VisionModel."""
    if not name.startswith("tower."):
        return name
    name = name.removeprefix("tower.")
    if name == "position_embedding":
        return "vision.embeddings.position_embedding.weight"
    if not name.startswith("layers."):
        return f"vision.embeddings.{name}"
    _, index, part, kind = name.split(".")
    inner = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    }.get(part, f"self_attn.{part}_proj")
    return f"vision.encoder.layers.{index}.{inner}.{kind}"
