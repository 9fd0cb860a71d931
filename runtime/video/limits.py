"""What one video may cost: bounds that are looked at before it is decoded, and while it is."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import ClassVar, NoReturn

from ...core.errors import DyCokeError
from ..bounds import Bounds

_UNITS = {
    "max_bytes": "bytes of the encoded file",
    "max_pixels": "pixels of a frame",
    "max_frames": "frames in the file",
    "max_samples": "sampled frames",
    "max_seconds": "seconds of decoding",
}


@dataclass(frozen=True)
class VideoLimits(Bounds):
    """Upper bounds. `dycoke serve`, `repo` and `ask` have a flag for each: --max-video-bytes ..."""

    PREFIX: ClassVar[str] = "max_video_"

    max_bytes: int = 1 << 30
    max_pixels: int = 8192 * 4320  # 8K as cinemas have it; decoders keep several such pictures
    max_frames: int = 432_000  # four hours at 30 frames per second
    max_samples: int = 512
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise DyCokeError(f"{self.flag(name)} {value} is not allowed; allowed: > 0")

    def check(self, name: str, value: float) -> None:
        """Raises DyCokeError with both values and the flag that raises the bound called `name`."""
        if value > getattr(self, name):
            self.refuse(name, f"{value:,}")

    def refuse(self, name: str, value: str) -> NoReturn:
        raise DyCokeError(
            f"{value} {_UNITS[name]}; allowed: up to {getattr(self, name):,} "
            f"({self.flag(name)} raises it)"
        )

    def deadline(self) -> Deadline:
        """Starts the clock of `max_seconds`."""
        return Deadline(self)


class Deadline:
    """When decoding has to be done: wall time, because that is what others wait for."""

    def __init__(self, limits: VideoLimits) -> None:
        self._limits = limits
        self._begun = time.monotonic()

    def check(self) -> None:
        """Raises DyCokeError once the time is over."""
        if time.monotonic() - self._begun > self._limits.max_seconds:
            self._limits.refuse("max_seconds", "more")
