"""No compression: every token survives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.config import DyCokeConfig
from .base import register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KeepAll:
    tokens: int  # of a frame

    @property
    def kept(self) -> tuple[int, ...]:
        return (self.tokens,)

    def survivors(self, features: Tensor) -> Tensor:
        import torch

        videos, frames, tokens, _ = features.shape
        return torch.arange(frames * tokens, device=features.device).expand(videos, -1)


@register("off")
def keep_all(config: DyCokeConfig, tokens: int) -> KeepAll:
    del config
    return KeepAll(tokens)
