"""Upper bounds of a server: each has a flag of `dycoke serve` and a parameter of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from ..core.errors import DyCokeError


@dataclass(frozen=True)
class Bounds:
    """Base of bounds: frozen dataclasses whose fields are numbers, each with its default.

    PREFIX stands for `max_` in the names of flags and parameters.
    """

    PREFIX: ClassVar[str] = "max_"

    @classmethod
    def parameter(cls, name: str) -> str:
        """Of a model in Triton's repository: max_video_bytes of max_bytes, say."""
        return name.replace("max_", cls.PREFIX)

    @classmethod
    def flag(cls, name: str) -> str:
        """--max-video-bytes of max_bytes, say."""
        return "--" + cls.parameter(name).replace("_", "-")

    def parameters(self) -> dict[str, str]:
        """As parameters of a model in Triton's repository."""
        return {self.parameter(name): str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Self:
        """What `parameters` wrote; a bound that is not there has its default."""
        given: dict[str, Any] = {}
        for bound in fields(cls):
            name = cls.parameter(bound.name)
            if name in parameters:
                number: Any = type(bound.default)
                try:
                    given[bound.name] = number(parameters[name])
                except ValueError:
                    raise DyCokeError(
                        f"{name}: {parameters[name]!r} is not allowed; allowed: a number > 0"
                    ) from None
        return cls(**given)
