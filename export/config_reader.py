"""Values of a JSON configuration, checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import DyCokeError


class ConfigReader:
    """Reads values and turns every refusal into one line that names the file `where`.

    `defaults`: of the class that the file is for; null counts as absent where there are any.
    Every method raises DyCokeError for a value that it does not take.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def section(self, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = config.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.refusal(f"{key}={value!r}", "an object")
        return value

    def count(self, values: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> int:
        value = values.get(key)
        value = defaults.get(key) if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refusal(f"{key}={value!r}", "an integer >= 1")
        return value

    def number(self, values: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> float:
        value = values.get(key)
        value = defaults.get(key) if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise self.refusal(f"{key}={value!r}", "a number > 0")
        return float(value)

    def equals(
        self, values: Mapping[str, Any], key: str, allowed: Any, *, default: Any, section: str = ""
    ) -> None:
        if (value := values.get(key, default)) != allowed:
            prefix = f"{section}." if section else ""
            raise self.refusal(f"{prefix}{key}={value!r}", repr(allowed))

    def refusal(self, given: str, allowed: str) -> DyCokeError:
        return DyCokeError(f"{self.where}: {given} is not supported; allowed: {allowed}")
