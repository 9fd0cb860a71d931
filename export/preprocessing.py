"""What a checkpoint's processor and tokenizer files say: pixel scale, chat template."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DyCokeError
from .checkpoint import read_json

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Where a video's pixel scale may be given, most specific first: (file, key in it).
_PROCESSORS = (
    ("video_preprocessor_config.json", None),
    ("processor_config.json", "video_processor"),
    ("preprocessor_config.json", None),
    ("processor_config.json", "image_processor"),
)


@dataclass(frozen=True)
class PixelScale:
    """pixel = (uint8 * rescale - mean) / std, per channel; SigLIP's values by default."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255

    def affine(self) -> tuple[Tensor, Tensor]:
        """(factor, offset), fp32 [1,3,1,1]: pixel = uint8 * factor + offset."""
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
        factor, offset = self.rescale / std, -mean / std
        return factor.float().view(1, 3, 1, 1), offset.float().view(1, 3, 1, 1)


def read_pixel_scale(directory: Path, image_size: int) -> PixelScale:
    """The scale that the checkpoint's processor files give, SigLIP's where there are none.

    Raises DyCokeError where they resize to another size than the tower takes.
    """
    for file, key in _PROCESSORS:
        path = directory / file
        if not path.is_file():
            continue
        values = read_json(path)
        values = values.get(key, {}) if key else values
        if "image_mean" not in values or "image_std" not in values:
            continue
        size = values.get("size")
        sides = set(size.values()) if isinstance(size, Mapping) else set()
        if sides - {image_size, None}:
            raise DyCokeError(
                f"{path}: resizes to {size}, the vision tower takes {image_size} x {image_size}; "
                "one of the two files is of another model"
            )
        mean, std = (_triple(path, name, values[name]) for name in ("image_mean", "image_std"))
        return PixelScale(mean, std, float(values.get("rescale_factor", 1 / 255)))
    return PixelScale()


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copies the tokenizer's files into the new directory `target`; returns their names.

    Raises DyCokeError where the checkpoint has no tokenizer.
    """
    found = [name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "vocab.json"} & set(found):
        raise DyCokeError(
            f"{source}: holds no tokenizer (tokenizer.json, or vocab.json and merges.txt); "
            "copy the tokenizer's files there"
        )
    target.mkdir()
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def read_chat_template(directory: Path) -> str | None:
    """The chat template's Jinja text from wherever the checkpoint keeps it; None without one."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = directory / name
        if path.is_file() and (template := _template(read_json(path).get("chat_template"))):
            return template
    return None


def _template(value: Any) -> str | None:
    """A template is a text, or a list of named ones of which `default` counts."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _triple(path: Path, name: str, value: Any) -> tuple[float, float, float]:
    good = isinstance(value, list) and len(value) == 3
    if not good or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value):
        raise DyCokeError(f"{path}: {name}={value!r} is not supported; allowed: three numbers")
    return float(value[0]), float(value[1]), float(value[2])
