"""Options that several commands share, and the configuration that they spell out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..core.config import DyCokeConfig

K = Annotated[float, typer.Option("--k", help="TTM pruning rate K, 0 <= K < 1.")]
L = Annotated[int, typer.Option("--l", help="Attention evaluation layer L; layers >= L prune.")]
P = Annotated[float, typer.Option("--p", help="KV pruning rate P in decoding, 0 <= P < 1.")]
Model = Annotated[
    str, typer.Option("--model", help="Preset: llava-ov-0.5b, llava-ov-7b or llava-ov-72b.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def dycoke_config(**fields: Any) -> DyCokeConfig:
    from ..core.config import DyCokeConfig

    return DyCokeConfig.from_dict(fields)


def require(*packages: str, extra: str) -> None:
    """Raises DyCokeError in one line if a package of an extra is not installed."""
    from importlib.util import find_spec

    from ..core.errors import DyCokeError

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise DyCokeError(
            f"{', '.join(missing)} is not installed; run: pip install 'dycoke-trt[{extra}]'"
        )
