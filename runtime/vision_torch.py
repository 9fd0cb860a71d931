"""The vision step in torch, from the weights of `vision_ttm.onnx`: for a GPU without TensorRT.

The same stages as the graph (export/vision_graph.py), in its dtype: SigLIP tower, projector,
bilinear pooling, TTM, newline. Attention is torch's fused one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from ..core.config import DyCokeConfig
from ..core.errors import DyCokeError
from ..core.ttm import ttm_merge
from .onnx_weights import read_onnx
from .vision import FILE

if TYPE_CHECKING:
    from ..kernels.ttm import TtmPlan

FRAMES_AT_ONCE = 32  # through the tower; bounds the memory of its activations


@dataclass(frozen=True)
class VisionShape:
    """layers used; heads; patch: pixels per side; side: patches per side."""

    layers: int
    heads: int
    patch: int
    side: int
    epsilon: float
    tanh_gelu: bool


class TorchVision:
    """Frames to visual embeddings; a drop-in for OnnxVision.

    weights: by the graph's names, matrices [in, out]. The image_newline is `newline/weight`.
    kernels: TTM by kernels/ttm.py, for a GPU, instead of core/.
    """

    def __init__(
        self,
        shape: VisionShape,
        weights: Mapping[str, Tensor],
        config: DyCokeConfig,
        *,
        kernels: bool = False,
    ) -> None:
        self.shape, self.config = shape, config
        self._kernels = kernels
        self._plans: dict[tuple[int, int], TtmPlan] = {}
        self._weights = weights
        self._dtype = weights["newline/weight"].dtype
        self._device = weights["newline/weight"].device

    @classmethod
    def from_bundle(
        cls, bundle: Path, device: torch.device | str, *, kernels: bool = False
    ) -> TorchVision:
        """Raises DyCokeError for a graph that this release did not write."""
        path = bundle / FILE
        file = read_onnx(path)
        try:
            layers = sum(
                name.endswith("/output") and name.startswith("tower/layers.")
                for name in json.loads(file.properties["layer_outputs"])
            )
            split = file.tensors["tower/layers.0/attention/q/split/shape"].tolist()
            flat = file.tensors["tower/embeddings/split/shape"].tolist()
            shape = VisionShape(
                layers=layers,
                heads=split[2],
                patch=flat[3],
                side=flat[2],
                epsilon=float(file.attributes["tower/layers.0/norm1"]["epsilon"]),
                tanh_gelu=file.attributes["tower/layers.0/mlp/gelu"]["approximate"] == "tanh",
            )
            config = DyCokeConfig.from_json(file.properties["dycoke"])
        except KeyError as error:
            raise DyCokeError(f"{path}: {error} is missing; export again") from None
        weights = {name: tensor.to(device) for name, tensor in file.tensors.items()}
        return cls(shape, weights, config, kernels=kernels)

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """frames: uint8 [B, F, 3, S, S], F a multiple of 4 -> [B, M+1, hidden] in its dtype."""
        videos, count = frames.shape[:2]
        flat = frames.to(self._device).flatten(0, 1)
        pooled = torch.cat([self.features(part) for part in torch.split(flat, FRAMES_AT_ONCE)])
        newline = self._weights["newline/weight"].view(1, -1)
        embeds = [
            torch.cat([self.merge(video), newline])
            for video in pooled.view(videos, count, *pooled.shape[1:])
        ]
        return torch.stack(embeds)

    def merge(self, features: Tensor) -> Tensor:
        """What TTM keeps of [F, N, hidden]: [M, hidden]."""
        if not self._kernels:
            return ttm_merge(features, self.config.k, self.config.ttm)
        from ..kernels.ttm import TtmPlan, select_survivors  # needs triton

        shape = (features.shape[0], features.shape[1])
        if shape not in self._plans:
            self._plans[shape] = TtmPlan.make(
                *shape, self.config.k, self.config.ttm, features.device
            )
        return features.flatten(0, 1)[select_survivors(features, self._plans[shape])]

    def features(self, frames: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] -> pooled features [n, N, hidden]."""
        side, patch = self.shape.side, self.shape.patch
        x = frames[..., : side * patch, : side * patch].float()
        x = (x * self._weights["pixels/factor"] + self._weights["pixels/offset"]).to(self._dtype)
        x = x.view(len(x), 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        base = "vision.embeddings."
        x = x.reshape(len(x), side * side, -1) @ self._weights[f"{base}patch_embedding.weight"]
        x = x + self._weights[f"{base}patch_embedding.bias"]
        x = x + self._weights[f"{base}position_embedding.weight"]
        for i in range(self.shape.layers):
            x = self._layer(f"vision.encoder.layers.{i}.", x)
        x = self._linear("projector.linear_2", gelu(self._linear("projector.linear_1", x)))
        return (self._weights["pooling/matrix"] @ x.float()).to(self._dtype)

    def _layer(self, name: str, x: Tensor) -> Tensor:
        """One pre-norm encoder layer on [n, P, d]."""
        n, patches, width = x.shape
        y = self._norm(f"{name}layer_norm1", x)
        query, key, value = (
            self._linear(f"{name}self_attn.{part}_proj", y)
            .view(n, patches, self.shape.heads, -1)
            .transpose(1, 2)
            for part in "qkv"
        )
        y = scaled_dot_product_attention(
            query, key, value, scale=1 / math.sqrt(width // self.shape.heads)
        )
        x = x + self._linear(f"{name}self_attn.out_proj", y.transpose(1, 2).reshape(x.shape))
        y = self._linear(f"{name}mlp.fc1", self._norm(f"{name}layer_norm2", x))
        y = gelu(y, approximate="tanh" if self.shape.tanh_gelu else "none")
        return x + self._linear(f"{name}mlp.fc2", y)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self._weights[f"{name}.bias"]
        flat = torch.addmm(bias, x.flatten(0, -2), self._weights[f"{name}.weight"])
        return flat.view(*x.shape[:-1], -1)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return layer_norm(x, weight.shape, weight, bias, self.shape.epsilon)
