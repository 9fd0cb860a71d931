"""SigLIP, projector, pooling, compression, newlines: frames to visual embeddings, the one forward
pass.

The exported graph is made from this module (export/vision.py), and the native backend runs it on a
GPU (runtime/vision_torch.py). Shapes: B videos of F frames, F a multiple of 4; P patches and N
pooled tokens per frame; d the tower's width, D the language model's.

Weights and matrix products are in the module's dtype; LayerNorm's statistics, softmax, pooling and
TTM's cosines compute in fp32. Matrices are [in, out], so that a product needs no transposed copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, layer_norm, scaled_dot_product_attention

from ..compress.base import Compressor
from ..compress.newlines import Newline, take, with_newlines
from .spec import PixelScale, TowerSpec, VisionSpec

# (query, key, value [n, heads, P, d / heads], scale) -> [n, heads, P, d / heads]
Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class VisionStages(NamedTuple):
    """Every value that a layer-by-layer comparison looks at."""

    embeddings: Tensor  # [B*F, P, d], before the first layer
    layers: tuple[Tensor, ...]  # [B*F, P, d] after each
    projected: Tensor  # [B*F, P, D]
    pooled: Tensor  # [B*F, N, D]
    rows: Tensor  # int64 [B, M], survivors among the F*N rows
    visual_embeds: Tensor  # [B, V, D]

    def named(self) -> dict[str, Tensor]:
        """All but the last two by the names that graphs and comparisons use, in order."""
        values = (self.embeddings, *self.layers, self.projected, self.pooled)
        return dict(zip(stage_names(len(self.layers)), values, strict=True))


def stage_names(layers: int) -> list[str]:
    """Names of a tower's stages: embeddings, each layer, projector, pooling."""
    inner = [f"tower/layers.{i}/output" for i in range(layers)]
    return ["tower/embeddings/output", *inner, "projector/linear_2", "pooling/output"]


class VisionModel(nn.Module):
    """attention: how the tower attends; `softmax_attention` is the reference and what graphs hold.
    Weights take no memory until they are loaded: `load_state_dict(..., assign=True)`.
    """

    def __init__(
        self,
        spec: VisionSpec,
        dtype: torch.dtype,
        *,
        attention: Attention | None = None,
    ) -> None:
        super().__init__()
        tower, hidden, scale = spec.tower, spec.hidden, spec.scale
        self.spec, self.dtype = spec, dtype
        self.pixels = Pixels(tower, scale, dtype)
        self.tower = Tower(tower, dtype, attention or softmax_attention)
        self.projector = Projector(tower.hidden, hidden, dtype)
        self.pooling = Pooling(tower.patches_per_side, dtype)
        self.compress = Compress(spec.compressor)
        self.newlines = Newlines(spec.newline, spec.compressor.kept, tower.tokens_per_frame)
        if spec.newline != "no_token":
            self.image_newline = weight(hidden, dtype=dtype)

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 [B, F, 3, S, S] -> [B, V, D]."""
        return self.stages(frames).visual_embeds

    def stages(self, frames: Tensor) -> VisionStages:
        embeddings, layers = self.tower(self.pixels(frames.float().flatten(0, 1)))
        projected = self.projector(layers[-1] if layers else embeddings)
        pooled = self.pooling(projected)
        rows, visual = self.join(pooled.view(*frames.shape[:2], *pooled.shape[1:]))
        return VisionStages(embeddings, layers, projected, pooled, rows, visual)

    def features(self, frames: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] -> pooled [n, N, D]."""
        embeddings, layers = self.tower(self.pixels(frames))
        pooled: Tensor = self.pooling(self.projector(layers[-1] if layers else embeddings))
        return pooled

    def join(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, F, N, D] -> (surviving rows [B, M], the survivors and newlines [B, V, D])."""
        rows: Tensor = self.compress(features)
        return rows, self.arrange(features, rows)

    def arrange(self, features: Tensor, rows: Tensor) -> Tensor:
        """The rows [B, M] of [B, F, N, D], with newlines in their places: [B, V, D]."""
        newline = self.image_newline if self.spec.newline != "no_token" else None
        arranged: Tensor = self.newlines(features, rows, newline)
        return arranged


class Pixels(nn.Module):
    """uint8 [n, 3, S, S] -> normalised patches [n, P, 3 * patch^2], of what whole patches cover."""

    factor: Tensor
    offset: Tensor

    def __init__(self, spec: TowerSpec, scale: PixelScale, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec, self.dtype = spec, dtype
        factor, offset = scale.affine()
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        side, patch = self.spec.patches_per_side, self.spec.patch
        x = frames.float()
        if side * patch < self.spec.image_size:  # 378 of 384
            x = x[:, :, : side * patch, : side * patch]
        x = (x * self.factor + self.offset).to(self.dtype)
        # A convolution with stride = kernel is a matrix product; opset 20 has no Conv in bf16.
        x = x.reshape(-1, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(-1, side * side, 3 * patch**2)


class Tower(nn.Module):
    """The layers that LLaVA-OneVision uses; no post-LayerNorm."""

    def __init__(self, spec: TowerSpec, dtype: torch.dtype, attention: Attention) -> None:
        super().__init__()
        self.patch_embedding = Linear(3 * spec.patch**2, spec.hidden, dtype)
        self.position_embedding = weight(spec.patches, spec.hidden, dtype=dtype)
        self.layers = nn.ModuleList(Layer(spec, dtype, attention) for _ in range(spec.layers))

    def forward(self, patches: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = embeddings = self.patch_embedding(patches) + self.position_embedding
        outputs = []
        for layer in self.layers:
            outputs.append(x := layer(x))
        return embeddings, tuple(outputs)


class Layer(nn.Module):
    """One pre-norm encoder layer on [n, P, d]."""

    def __init__(self, spec: TowerSpec, dtype: torch.dtype, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = spec.heads, attention
        self.gelu = "tanh" if spec.tanh_gelu else "none"
        width = spec.hidden
        self.norm1 = LayerNorm(width, spec.layer_norm_eps, dtype)
        self.norm2 = LayerNorm(width, spec.layer_norm_eps, dtype)
        self.q, self.k, self.v, self.out = (Linear(width, width, dtype) for _ in range(4))
        self.fc1 = Linear(width, spec.intermediate, dtype)
        self.fc2 = Linear(spec.intermediate, width, dtype)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        query, key, value = (
            part(normed).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        attended = self.attention(query, key, value, 1 / math.sqrt(query.shape[-1]))
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        inner: Tensor = self.fc2(gelu(self.fc1(self.norm2(x)), approximate=self.gelu))
        return x + inner


class Projector(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear_1 = Linear(width, hidden, dtype)
        self.linear_2 = Linear(hidden, hidden, dtype)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.linear_2(gelu(self.linear_1(x)))
        return projected


class Pooling(nn.Module):
    """[n, P, D] -> [n, N, D]: bilinear to half the side, as one constant matrix.

    In fp32 whatever the dtype: rounded coefficients would no longer sum to one. A product that
    stands alone between two casts is computed in the narrow type by TensorRT for RTX 1.7.1, matrix
    included, though the network is strongly typed; so twice the values meet half the matrix, which
    changes no bit.
    """

    matrix: Tensor

    def __init__(self, side: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        matrix = pooling_matrix(side)
        narrow = dtype != torch.float32
        self.register_buffer("matrix", matrix / 2 if narrow else matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.dtype == torch.float32:
            return self.matrix @ x
        return (self.matrix @ (x.float() * 2)).to(self.dtype)


class Compress(nn.Module):
    """[B, F, N, D] -> surviving rows [B, M]."""

    def __init__(self, compressor: Compressor) -> None:
        super().__init__()
        self.compressor = compressor

    def forward(self, features: Tensor) -> Tensor:
        return self.compressor.survivors(features)


class Newlines(nn.Module):
    """[B, F, N, D], surviving rows [B, M], the newline [D] -> [B, V, D]."""

    def __init__(self, newline: Newline, kept: tuple[int, ...], tokens: int) -> None:
        super().__init__()
        self.newline, self.kept, self.tokens = newline, kept, tokens

    def forward(self, features: Tensor, rows: Tensor, newline: Tensor | None) -> Tensor:
        if newline is not None and self.newline != "one_token":
            rows = with_newlines(rows, self.newline, self.kept, self.tokens)
            return take(features, rows, newline)
        whole = sum(self.kept) == self.tokens * len(self.kept)
        taken = features.flatten(1, 2) if whole else take(features, rows, None)
        if newline is None:
            return taken
        return torch.cat([taken, newline.expand(rows.shape[0], 1, -1)], dim=1)


class Linear(nn.Module):
    """x @ weight + bias, weight [in, out]."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight(inputs, outputs, dtype=dtype)
        self.bias = weight(outputs, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class LayerNorm(nn.Module):
    def __init__(self, width: int, epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = weight(width, dtype=dtype), weight(width, dtype=dtype)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Scaled before the product (fp16 has no room for the raw one), softmax in fp32."""
    scores = (query * scale) @ key.transpose(2, 3)
    return scores.float().softmax(-1).to(value.dtype) @ value


def fused_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The same by torch's fused kernels."""
    return scaled_dot_product_attention(query, key, value, scale=scale)


def weight(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A place for a weight that takes no memory until it is loaded: one value, expanded."""
    return nn.Parameter(torch.zeros((), dtype=dtype).expand(shape), requires_grad=False)


def pooling_matrix(side: int) -> Tensor:
    """fp32 [N, P]: bilinear interpolation from side x side to ceil(side/2) squared, torch's own."""
    patches, pooled = side * side, (side + 1) // 2
    images = torch.eye(patches).view(patches, 1, side, side)
    small = interpolate(images, size=(pooled, pooled), mode="bilinear")
    return small.view(patches, pooled * pooled).t().contiguous()
