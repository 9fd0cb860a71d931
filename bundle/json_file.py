"""Reads the JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.errors import DyCokeError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; DyCokeError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DyCokeError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DyCokeError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise DyCokeError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
