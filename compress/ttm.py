"""The paper's TTM over whole batches of videos, in a form that torch.export and ONNX can hold.

What it selects is `core.ttm.ttm_select` of each video, mode `paper`: there, frame by frame and
obvious; here, window by window with a dynamic number of frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.config import DyCokeConfig
from ..core.errors import DyCokeError
from ..core.ttm import similarity_steps, tokens_kept_per_frame
from .base import Compressor, register
from .keep_all import KeepAll

if TYPE_CHECKING:
    from torch import Tensor

_INDEX_BITS = 10  # beside the 21 bits of a grid similarity in an int32; below TopK's limit too


@dataclass(frozen=True)
class Ttm:
    """tokens: of a frame. k: the share of each compared frame that goes, 0 <= k < 1."""

    tokens: int
    k: float

    @property
    def keep(self) -> int:
        """Tokens of each compared frame that stay."""
        return tokens_kept_per_frame(self.tokens, self.k)

    @property
    def kept(self) -> tuple[int, ...]:
        return (self.tokens, self.keep, self.keep, self.keep)

    def survivors(self, features: Tensor) -> Tensor:
        """Raises DyCokeError for more than 1024 tokens per frame."""
        import torch

        videos, frames, tokens, width = features.shape
        windows = features.reshape(videos, frames // 4, 4, tokens, width)
        start = torch.arange(frames // 4, device=features.device)[:, None] * (4 * tokens)
        whole = start + torch.arange(tokens, device=features.device)  # f0 of each window
        rows = whole.expand(videos, -1, -1)
        if self.keep:
            compared = torch.arange(1, 4, device=features.device)[:, None] * tokens  # f1, f2, f3
            kept = (least_similar(windows, self.keep) + compared).flatten(2) + start
            rows = torch.cat([rows, kept], dim=2)
        return rows.flatten(1)


@register("paper")
def ttm(config: DyCokeConfig, tokens: int) -> Compressor:
    method = Ttm(tokens, config.k)
    return method if method.keep < tokens else KeepAll(tokens)


def least_similar(windows: Tensor, keep: int) -> Tensor:
    """[B, W, 4, N, D] -> int64 [B, W, 3, keep]: what survives of f1, f2, f3, in spatial order.

    A token's rank key is its similarity on the grid times 2^s plus its index, an int32. All keys
    differ, so equal similarities go to the lowest index however a TopK breaks ties.
    """
    import torch

    tokens = windows.shape[3]
    bits = (tokens - 1).bit_length()
    if bits > _INDEX_BITS:
        raise DyCokeError(f"{tokens} tokens per frame; TTM can be exported for {1 << _INDEX_BITS}")
    # f1 and f2 against f0, f3 against f2
    compared, anchors = (
        windows.index_select(2, torch.tensor(frames, device=windows.device))
        for frames in ([1, 2, 3], [0, 0, 2])
    )
    steps = similarity_steps(compared, anchors)
    index = torch.arange(tokens, dtype=torch.int32, device=windows.device)
    key = steps.to(torch.int32) * (1 << bits) + index
    kept = key.topk(keep, dim=-1, largest=False, sorted=True).indices
    in_order = kept.to(torch.int32).topk(keep, dim=-1, largest=False, sorted=True).values
    return in_order.to(torch.int64)
