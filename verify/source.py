"""The source model, run by transformers, stage by stage, whatever format its checkpoint is in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..arch.spec import PixelScale
from ..bundle.json_file import read_json
from ..compress.newlines import Newline
from ..core.config import DyCokeConfig
from ..core.errors import DyCokeError
from ..core.ttm import ttm_select
from ..export.checkpoint import Checkpoint
from ..export.model_config import SO400M
from ..export.names import hub_name
from ..export.processor import read_pixel_scale

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration

_UNREAD = ("post_layernorm.weight", "post_layernorm.bias")  # of the tower, behind what is used


@dataclass(frozen=True)
class Source:
    """The model in fp32, how its frames are scaled, and where its newlines stand."""

    model: LlavaOnevisionForConditionalGeneration
    scale: PixelScale
    newline: Newline


def load_source(checkpoint: Checkpoint, vision_tower: Path | None = None) -> Source:
    """A Hugging Face checkpoint as transformers loads it; one of LLaVA-NeXT's format as the same
    classes with its weights (SigLIP, projector and Qwen2 are those of LLaVA-OneVision).

    vision_tower: the directory that the checkpoint was opened with. Raises DyCokeError for what
    transformers cannot load.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    tower = checkpoint.vision
    if tower is None:
        raise DyCokeError(f"{checkpoint.directory}: a bare LLM has no vision tower to compare")
    scale = PixelScale()  # LLaVA-NeXT's code has SigLIP's built in
    if checkpoint.kind == "hf":
        scale = read_pixel_scale(checkpoint.directory, tower.image_size)
    try:
        model = _load(checkpoint, vision_tower)
    except Exception as error:  # transformers raises many kinds for a bad directory
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DyCokeError(
            f"{checkpoint.directory}: transformers cannot load it as LLaVA-OneVision ({reason})"
        ) from None
    return Source(model.eval(), scale, checkpoint.config.newline)


def _load(checkpoint: Checkpoint, vision_tower: Path | None) -> Any:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    load = LlavaOnevisionForConditionalGeneration.from_pretrained
    if checkpoint.kind == "hf":
        return load(checkpoint.directory, dtype=torch.float32)
    # transformers reads the values itself: a default that export gets wrong is seen.
    text = read_json(checkpoint.directory / "config.json")
    tower: dict[str, Any] = dict(SO400M)
    if vision_tower is not None:
        tower = read_json(vision_tower / "config.json")
    siglip = SiglipVisionConfig.from_dict(tower.get("vision_config", tower))
    siglip.num_hidden_layers -= 1  # the released code deletes the last, and takes what they give
    siglip.vision_use_head = False
    # A head in the file wins over ties; the checkpoint gives the embedding where there is none.
    qwen2 = Qwen2Config.from_dict(text | {"model_type": "qwen2", "tie_word_embeddings": False})
    config = LlavaOnevisionConfig(
        text_config=qwen2,
        vision_config=siglip,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    weights = {hub_name(name): checkpoint.tensor(name).float() for name in checkpoint.names()}
    for name, values in zip(_UNREAD, (torch.ones, torch.zeros), strict=True):
        weights[f"vision_tower.vision_model.{name}"] = values(siglip.hidden_size)
    weights.setdefault("image_newline", torch.zeros(qwen2.hidden_size))
    return load(None, config=config, state_dict=weights, dtype=torch.float32)


@torch.no_grad()
def vision_stages(source: Source, pixels: Tensor, config: DyCokeConfig) -> dict[str, Tensor]:
    """Every stage of the vision graph, under the graph's names for them.

    pixels: fp32 [B, F, 3, S, S], normalised. Returns fp32 tensors: tower/embeddings/output,
    tower/layers.{i}/output [B*F, P, d], projector/linear_2 [B*F, P, D], pooling/output [B*F, N, D],
    visual_embeds [B, V, D].
    """
    inner: Any = source.model.model
    layer = int(source.model.config.vision_feature_layer)  # type: ignore[arg-type]
    hidden = inner.vision_tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states
    used = hidden[: len(hidden) + layer + 1 if layer < 0 else layer + 1]
    stages = {"tower/embeddings/output": used[0]}
    stages |= {f"tower/layers.{i}/output": state for i, state in enumerate(used[1:])}
    projected = inner.multi_modal_projector(used[-1])
    pooled = inner.apply_pooling(projected)
    stages |= {"projector/linear_2": projected, "pooling/output": pooled}
    videos = pooled.unflatten(0, pixels.shape[:2])
    merged = []
    for video in videos:
        kept = ttm_select(video, config.k, config.ttm, seed=config.seed)
        merged.append(_with_newlines(video, kept, inner.image_newline, source.newline))
    return stages | {"visual_embeds": torch.stack(merged)}


def _with_newlines(features: Tensor, kept: Tensor, newline: Tensor, layout: Newline) -> Tensor:
    """[F, N, D] -> [V, D]: newlines as LLaVA-NeXT's add_token_per_grid and add_token_per_frame put
    them into whole frames, less the rows that are not `kept`, of which newlines are none."""
    frames, tokens, _ = features.shape
    order = torch.arange(frames * tokens).view(frames, tokens)  # of table's rows; -1: its last
    if layout == "grid":
        order = order.view(frames, -1, math.isqrt(tokens))
    if layout in ("grid", "frame"):
        order = pad(order, (0, 1), value=-1)
    order = order.flatten()
    if layout == "one_token":
        order = pad(order, (0, 1), value=-1)
    order = order[(order < 0) | torch.isin(order, kept)]
    table = torch.cat([features.flatten(0, 1), newline[None]])
    return table[order]
