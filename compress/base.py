"""What a compressor is, which there are, and how many visual tokens a video has.

A method is one file of this folder: it registers under the name that `DyCokeConfig.ttm` gives. What
it keeps has to be countable before any feature exists, because prompts and buffers are sized first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..core.config import TTM_MODES, DyCokeConfig
from ..core.errors import DyCokeError
from ..core.ttm import ttm_count
from .newlines import Newline, newline_count

if TYPE_CHECKING:
    from torch import Tensor


class Compressor(Protocol):
    """Which tokens of a video survive. Hashable and equal by value: traced graphs are kept by it.

    Frames are taken in windows of as many as `kept` has entries, 1, 2 or 4.
    """

    @property
    def kept(self) -> tuple[int, ...]:
        """Tokens that stay of each frame of a window."""

    def survivors(self, features: Tensor) -> Tensor:
        """[B, F, N, D] -> int64 [B, M]: rows of each video's F*N that stay, in ascending order.

        F is a multiple of 4. Has to be exportable by torch.onnx, with B and F dynamic.
        """


Factory = Callable[[DyCokeConfig, int], Compressor]  # config, tokens per frame
COMPRESSORS: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Makes a compressor known as `DyCokeConfig(ttm=name)`."""

    def add(factory: Factory) -> Factory:
        COMPRESSORS[name] = factory
        if name not in TTM_MODES:
            TTM_MODES.append(name)
        return factory

    return add


def compressor_of(config: DyCokeConfig, tokens: int) -> Compressor:
    """Raises DyCokeError for modes that exist frame by frame only (core/ttm.py)."""
    if config.ttm not in COMPRESSORS:
        raise DyCokeError(
            f"ttm={config.ttm!r} cannot be exported; allowed: {', '.join(COMPRESSORS)} "
            "(reference and random exist in the native oracle only)"
        )
    return COMPRESSORS[config.ttm](config, tokens)


def survivor_count(frames: int, tokens: int, config: DyCokeConfig) -> int:
    """M: what stays of `frames` frames of `tokens` tokens each; any number of frames.

    Raises DyCokeError for modes of core/ttm.py that have no answer.
    """
    if config.ttm not in COMPRESSORS or frames < 1 or tokens < 1:
        return ttm_count(frames, tokens, config.k, config.ttm)
    kept = compressor_of(config, tokens).kept
    windows, rest = divmod(frames, len(kept))
    return windows * sum(kept) + sum(kept[:rest])


def visual_tokens(frames: int, tokens: int, config: DyCokeConfig, newline: Newline) -> int:
    """V, the length of the visual span: the survivors and every image_newline among them."""
    return survivor_count(frames, tokens, config) + newline_count(newline, frames, tokens)
