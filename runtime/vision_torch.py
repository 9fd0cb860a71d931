"""The vision step in torch: arch/siglip.py on a GPU, without TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..arch.siglip import VisionModel, fused_attention
from ..bundle.paths import VISION_WEIGHTS
from ..compress.ttm import Ttm
from ..core.errors import DyCokeError

if TYPE_CHECKING:
    from ..kernels.ttm import TtmPlan

FRAMES_AT_ONCE = 32  # through the tower; bounds the memory of its activations


class TorchVision:
    """Frames to visual embeddings; a drop-in for OnnxVision.

    model: with its weights loaded. kernels: TTM by kernels/ttm.py, for a GPU.
    """

    def __init__(self, model: VisionModel, *, kernels: bool = False) -> None:
        self.model = model
        self._kernels = kernels and isinstance(model.spec.compressor, Ttm)
        self._plans: dict[tuple[int, int], TtmPlan] = {}
        self._device = model.pooling.matrix.device

    @classmethod
    def from_bundle(
        cls, bundle: Path, device: torch.device | str, *, kernels: bool = False
    ) -> TorchVision:
        """Raises DyCokeError for weights that are missing or damaged."""
        from ..bundle.files import open_bundle  # needs pydantic, which a benchmark may lack

        manifest = open_bundle(bundle)
        model = manifest.vision_model(fused_attention)
        path = bundle / VISION_WEIGHTS
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            model.load_state_dict(weights, assign=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise DyCokeError(f"{path}: cannot be loaded ({reason}); export again") from None
        return cls(model.to(device), kernels=kernels)

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """frames: uint8 [B, F, 3, S, S], F a multiple of 4 -> [B, V, hidden] in its dtype."""
        flat = frames.to(self._device).flatten(0, 1)
        parts = [self.model.features(part) for part in torch.split(flat, FRAMES_AT_ONCE)]
        features = torch.cat(parts).view(*frames.shape[:2], *parts[0].shape[1:])
        if not self._kernels:
            return self.model.join(features)[1]
        rows = torch.stack([self.survivors(video) for video in features])
        return self.model.arrange(features, rows)

    def survivors(self, features: Tensor) -> Tensor:
        """Rows that TTM keeps of [F, N, hidden]: int64 [M]."""
        from ..kernels.ttm import TtmPlan, select_survivors  # needs triton

        method, shape = self.model.spec.compressor, (features.shape[0], features.shape[1])
        assert isinstance(method, Ttm)
        if shape not in self._plans:
            self._plans[shape] = TtmPlan.make(*shape, method.k, "paper", features.device)
        return select_survivors(features, self._plans[shape]).long()
