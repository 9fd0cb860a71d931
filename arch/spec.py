"""What a model is: one description that export, bundle, engines, runtime and cost read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..compress.base import Compressor
from ..compress.newlines import Newline
from ..cost.dims import LlmDims, VisionDims

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PixelScale:
    """pixel = (uint8 * rescale - mean) / std, per channel; SigLIP's values by default."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255

    def affine(self) -> tuple[Tensor, Tensor]:
        """(factor, offset), fp32 [1,3,1,1]: pixel = uint8 * factor + offset."""
        import torch

        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
        factor, offset = self.rescale / std, -mean / std
        return factor.float().view(1, 3, 1, 1), offset.float().view(1, 3, 1, 1)


@dataclass(frozen=True, kw_only=True)
class TowerSpec(VisionDims):
    """SigLIP as it runs: `layers` are the layers used, before any post-LayerNorm."""

    heads: int
    image_size: int
    layer_norm_eps: float
    tanh_gelu: bool  # the tower's activation; the projector's is the exact one


@dataclass(frozen=True)
class VisionSpec:
    """The vision step: frames to visual embeddings of width `hidden`. Hashable: graphs are kept by
    it."""

    tower: TowerSpec
    hidden: int
    scale: PixelScale
    compressor: Compressor
    newline: Newline


@dataclass(frozen=True, kw_only=True)
class DecoderSpec(LlmDims):
    """Qwen2: dimensions (vocab: the padded rows of the embedding) and what its math needs."""

    rope_theta: float
    rms_norm_eps: float
    max_positions: int
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
