"""Packages that an extra of the distribution brings: there, or named in one line."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import DyCokeError


def require(*packages: str, extra: str) -> None:
    """Raises DyCokeError in one line if a package of an extra is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise DyCokeError(
            f"{', '.join(missing)} is not installed; run: pip install 'dycoke-trt[{extra}]'"
        )
