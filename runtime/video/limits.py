"""What one video may cost: bounds that are looked at before it is decoded, and while it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from ...core.errors import DyCokeError

_UNITS = {
    "max_bytes": "bytes of the encoded file",
    "max_pixels": "pixels of a frame",
    "max_frames": "frames in the file",
    "max_samples": "sampled frames",
    "max_seconds": "seconds of decoding",
}


@dataclass(frozen=True)
class VideoLimits:
    """Upper bounds. `dycoke serve`, `repo` and `ask` have a flag for each: --max-video-bytes ..."""

    max_bytes: int = 1 << 30
    max_pixels: int = 8192 * 4320  # 8K as cinemas have it; decoders keep several such pictures
    max_frames: int = 432_000  # four hours at 30 frames per second
    max_samples: int = 512
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise DyCokeError(f"{_flag(name)} {value} is not allowed; allowed: > 0")

    def check(self, name: str, value: float) -> None:
        """Raises DyCokeError with both values and the flag that raises the bound called `name`."""
        if value > getattr(self, name):
            self.refuse(name, f"{value:,}")

    def refuse(self, name: str, value: str) -> NoReturn:
        raise DyCokeError(
            f"{value} {_UNITS[name]}; allowed: up to {getattr(self, name):,} "
            f"({_flag(name)} raises it)"
        )

    def deadline(self) -> Deadline:
        """Starts the clock of `max_seconds`."""
        return Deadline(self)

    def parameters(self) -> dict[str, str]:
        """As parameters of a model in Triton's repository: max_video_bytes and so on."""
        return {_parameter(name): str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> VideoLimits:
        """What `parameters` wrote; a bound that is not there has its default."""
        defaults = asdict(cls())
        given: dict[str, Any] = {}
        for name, default in defaults.items():
            text = parameters.get(_parameter(name), str(default))
            try:
                given[name] = type(default)(text)
            except ValueError:
                raise DyCokeError(
                    f"{_parameter(name)}: {text!r} is not allowed; allowed: a number > 0"
                ) from None
        return cls(**given)


class Deadline:
    """When decoding has to be done: wall time, because that is what others wait for."""

    def __init__(self, limits: VideoLimits) -> None:
        self._limits = limits
        self._begun = time.monotonic()

    def check(self) -> None:
        """Raises DyCokeError once the time is over."""
        if time.monotonic() - self._begun > self._limits.max_seconds:
            self._limits.refuse("max_seconds", "more")


def _parameter(name: str) -> str:
    return name.replace("max_", "max_video_")


def _flag(name: str) -> str:
    return "--" + _parameter(name).replace("_", "-")
