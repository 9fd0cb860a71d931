"""The model families that there are, one file of arch/families each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ..compress.newlines import Newline
from ..core.errors import DyCokeError


@dataclass(frozen=True)
class Family:
    """name: `arch` in bundle.json. reads: whether a config.json (as LLaVA-NeXT or Hugging Face
    writes it) is of this family. newline: its layout of visual tokens; raises DyCokeError.
    source: what tells it, for lists of what is supported.
    """

    name: str
    source: str
    reads: Callable[[Mapping[str, Any]], bool]
    newline: Callable[[Mapping[str, Any]], Newline]


@cache
def families() -> dict[str, Family]:
    """By name: FAMILY of every module of arch/families."""
    package = import_module(f"{__package__}.families")
    modules = [
        import_module(f"{package.__name__}.{module.name}")
        for module in iter_modules(package.__path__)
    ]
    return {module.FAMILY.name: module.FAMILY for module in modules}


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family that a config.json is of. where: the file that errors name.

    Raises DyCokeError for one that is of none.
    """
    for family in families().values():
        if family.reads(config):
            return family
    supported = "; ".join(family.source for family in families().values())
    raise DyCokeError(
        f"{where}: model_type={config.get('model_type')!r} is no supported checkpoint; supported: "
        f"{supported}; qwen2 (LLM only)"
    )


def is_llava_next(config: Mapping[str, Any]) -> bool:
    """Whether it is in the original format of the LLaVA-NeXT code."""
    return "mm_vision_tower" in config or "mm_hidden_size" in config
