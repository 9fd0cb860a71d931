"""The source model, run by transformers, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.config import DyCokeConfig
from ..core.errors import DyCokeError
from ..core.ttm import ttm_merge

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration


def load_source(directory: Path) -> LlavaOnevisionForConditionalGeneration:
    """The Hugging Face model in fp32. Raises DyCokeError for what transformers cannot load."""
    from transformers import LlavaOnevisionForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32
        )
    except Exception as error:  # transformers raises many kinds for a bad directory
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DyCokeError(
            f"{directory}: transformers cannot load it as LLaVA-OneVision ({reason})"
        ) from None
    return model.eval()  # type: ignore[no-any-return]


@torch.no_grad()
def vision_stages(
    model: LlavaOnevisionForConditionalGeneration, pixels: Tensor, config: DyCokeConfig
) -> dict[str, Tensor]:
    """Every stage of the vision graph, under the graph's names for them.

    pixels: fp32 [B, F, 3, S, S], normalised. Returns fp32 tensors: tower/embeddings/output,
    tower/layers.{i}/output [B*F, P, d], projector/linear_2 [B*F, P, D], pooling/output [B*F, N, D],
    visual_embeds [B, M+1, D].
    """
    inner: Any = model.model
    layer = int(model.config.vision_feature_layer)  # type: ignore[arg-type]
    hidden = inner.vision_tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states
    used = hidden[: len(hidden) + layer + 1 if layer < 0 else layer + 1]
    stages = {"tower/embeddings/output": used[0]}
    stages |= {f"tower/layers.{i}/output": state for i, state in enumerate(used[1:])}
    projected = inner.multi_modal_projector(used[-1])
    pooled = inner.apply_pooling(projected)
    stages |= {"projector/linear_2": projected, "pooling/output": pooled}
    newline = inner.image_newline[None]
    videos = pooled.unflatten(0, pixels.shape[:2])
    merged = [
        torch.cat([ttm_merge(v, config.k, config.ttm, seed=config.seed), newline]) for v in videos
    ]
    return stages | {"visual_embeds": torch.stack(merged)}
