"""Dimensions of LLaVA-OneVision checkpoints, and the counts that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from ..compress.base import visual_tokens
from ..compress.newlines import Newline
from ..core.config import DyCokeConfig
from ..core.errors import DyCokeError


@dataclass(frozen=True)
class VisionDims:
    """SigLIP tower as LLaVA-OneVision runs it: the last layer and the head are not used."""

    layers: int = 26  # 27 in SigLIP-so400m; the last one is dropped
    hidden: int = 1152
    intermediate: int = 4304
    patch: int = 14
    patches_per_side: int = 27  # 384 // 14

    @property
    def patches(self) -> int:
        return self.patches_per_side**2

    @property
    def tokens_per_frame(self) -> int:
        """After bilinear pooling by two, rounded up: 27 x 27 -> 14 x 14 = 196."""
        return ((self.patches_per_side + 1) // 2) ** 2


@dataclass(frozen=True)
class LlmDims:
    """Qwen2 decoder. hidden, intermediate, layers are d, m, T of the paper's Table 8."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied_embeddings: bool

    def of_rank(self, tp: int) -> Self:
        """One rank's share: with more ranks than key-value heads, each has a copy of one."""
        return replace(
            self,
            intermediate=self.intermediate // tp,
            heads=self.heads // tp,
            kv_heads=max(1, self.kv_heads // tp),
        )

    @property
    def layer_matrix_weights(self) -> int:
        """Weights of one layer's matrices: q, k, v, o and the three of the gated FFN."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def layer_weights(self) -> int:
        """All weights of one layer: matrices, q/k/v biases, two RMSNorms."""
        biases = self.head_dim * (self.heads + 2 * self.kv_heads)
        return self.layer_matrix_weights + biases + 2 * self.hidden

    @property
    def weights(self) -> int:
        """All weights in memory; tied embeddings count once."""
        tables = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * self.layer_weights + tables + self.hidden

    @property
    def weights_read_per_step(self) -> int:
        """Weights that one decode step reads: all but the embedding table, which is gathered."""
        return self.layers * self.layer_weights + self.vocab * self.hidden + self.hidden

    def kv_bytes_per_token(self, element_bytes: int = 2) -> int:
        """K and V of one token over all layers, in bytes."""
        return self.layers * self.kv_bytes_per_token_layer(element_bytes)

    def kv_bytes_per_token_layer(self, element_bytes: int = 2) -> int:
        return 2 * self.kv_heads * self.head_dim * element_bytes


@dataclass(frozen=True)
class ModelDims:
    """A LLaVA-OneVision checkpoint: tower, 2-layer projector, decoder."""

    name: str
    llm: LlmDims
    vision: VisionDims = VisionDims()
    newline: Newline = "one_token"

    def visual_tokens(self, frames: int, config: DyCokeConfig) -> int:
        """V of a video, newlines included."""
        return visual_tokens(frames, self.vision.tokens_per_frame, config, self.newline)

    @property
    def projector_weights(self) -> int:
        return self.vision.hidden * self.llm.hidden + self.llm.hidden**2 + 2 * self.llm.hidden

    @property
    def vision_weights(self) -> int:
        """Tower (matrices, biases, LayerNorms, patch and position embeddings) and projector."""
        v = self.vision
        layer = 4 * v.hidden**2 + 2 * v.hidden * v.intermediate + 9 * v.hidden + v.intermediate
        embeddings = (3 * v.patch**2 + 1 + v.patches) * v.hidden
        return v.layers * layer + embeddings + self.projector_weights


# Qwen2's config.json files (vocabulary: padded embedding rows) and the paper's Table 8.
PRESETS = {
    dims.name: dims
    for dims in (
        ModelDims("llava-ov-0.5b", LlmDims(24, 896, 4864, 14, 2, 64, 151_936, True)),
        ModelDims("llava-ov-7b", LlmDims(28, 3584, 18_944, 28, 4, 128, 152_064, False)),
        ModelDims("llava-ov-72b", LlmDims(80, 8192, 29_568, 64, 8, 128, 152_064, False)),
    )
}


def preset(name: str) -> ModelDims:
    """The dimensions named `name`; raises DyCokeError listing the presets."""
    if name not in PRESETS:
        raise DyCokeError(f"unknown model {name!r}; presets: {', '.join(PRESETS)}")
    return PRESETS[name]
