"""How a checkpoint's processor files turn a video's frames into pixel values.

As transformers 5 reads them for LlavaOnevisionVideoProcessor: one block of values, from the first
place that has one; a value that is missing is the class's, and null is a flag that is off. What
the exported graph or the runtime's resize would compute differently is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arch.spec import PixelScale
from ..bundle.json_file import read_json
from ..core.errors import DyCokeError

# Where a video's processor may be described, in transformers' order: (file, key in it). The last
# is ours: without it such a checkpoint could not be read at all.
_PLACES = (
    ("processor_config.json", "video_processor"),
    ("video_preprocessor_config.json", None),
    ("preprocessor_config.json", None),
    ("processor_config.json", "image_processor"),
)
# What LlavaOnevisionVideoProcessor takes where the files are silent; mean and std are CLIP's.
_DEFAULTS: Mapping[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": False,
    "size": {"height": 384, "width": 384},
    "default_to_square": False,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_BICUBIC = (3, "bicubic")  # Pillow's number; the only filter of runtime/resize.py


def read_pixel_scale(directory: Path, image_size: int, patches: int | None = None) -> PixelScale:
    """The scale that the processor files of a Hugging Face checkpoint give.

    image_size: side of the tower's images, to which frames must be resized. patches: of the tower,
    if the number that the processor counts on is to be checked.
    Raises DyCokeError, one line, without such a file and for every value that would have to change
    more than rescaling and normalising.
    """
    processor = directory / "processor_config.json"
    if patches is not None and processor.is_file():
        count = read_json(processor).get("num_image_tokens")
        if count not in (None, patches):
            raise DyCokeError(
                f"{processor}: num_image_tokens={count!r}, the vision tower has {patches} patches; "
                "one of the two files is of another model"
            )
    for file, key in _PLACES:
        path = directory / file
        if not path.is_file():
            continue
        values = read_json(path)
        if key is None or key in values:
            block = values if key is None else values[key]
            where = f"{path}: " + (f"{key}." if key else "")
            if not isinstance(block, Mapping):
                raise DyCokeError(f"{where[:-1]} is {block!r}; allowed: an object")
            return _Processor(where, block).scale(image_size)
    raise DyCokeError(
        f"{directory}: says nowhere how pixels are scaled (processor_config.json with a "
        "video_processor, video_preprocessor_config.json or preprocessor_config.json); copy the "
        "file from the model that this one was trained from"
    )


class _Processor:
    """One block of values; every refusal is one line that names file and key."""

    def __init__(self, where: str, block: Mapping[str, Any]) -> None:
        self.where = where
        self.values: Mapping[str, Any] = {**_DEFAULTS, **block}

    def scale(self, image_size: int) -> PixelScale:
        kind = self.values.get("video_processor_type", "LlavaOnevisionVideoProcessor")
        if kind != "LlavaOnevisionVideoProcessor":
            raise self.refusal("video_processor_type", "LlavaOnevisionVideoProcessor")
        if not self.flag("do_resize"):
            raise self.refusal("do_resize", "true (the vision tower takes one size)")
        self.square("size", image_size, whole=bool(self.values["default_to_square"]))
        resample = self.values["resample"]
        name = resample.lower() if isinstance(resample, str) else resample
        if isinstance(name, bool) or name not in _BICUBIC:
            raise self.refusal("resample", "3 (bicubic)")
        if self.flag("do_center_crop"):
            self.square("crop_size", image_size, whole=True)  # a crop to that size changes nothing
        rescale = self.rescale() if self.flag("do_rescale") else 1.0
        if not self.flag("do_normalize"):
            return PixelScale((0.0,) * 3, (1.0,) * 3, rescale)
        mean, std = self.triple("image_mean"), self.triple("image_std")
        if 0 in std:
            raise self.refusal("image_std", "numbers other than 0, by which pixels are divided")
        return PixelScale(mean, std, rescale)

    def flag(self, key: str) -> bool:
        value = self.values[key]
        if value is not None and not isinstance(value, bool):
            raise self.refusal(key, "true, false")
        return bool(value)

    def square(self, key: str, side: int, *, whole: bool) -> None:
        """Refuses a size other than side x side. whole: a lone number is the side of a square."""
        size = self.values.get(key)
        if isinstance(size, int) and not isinstance(size, bool) and whole:
            size = [size, size]
        if isinstance(size, Mapping):
            given = {name: value for name, value in size.items() if value is not None}
            sides = (
                [given[n] for n in ("height", "width")] if set(given) == {"height", "width"} else []
            )
        else:
            sides = list(size) if isinstance(size, (list, tuple)) else []
        if sides != [side, side]:
            raise DyCokeError(
                f"{self.where}{key} makes frames {size}, the vision tower takes {side} x {side} "
                f'({{"height": {side}, "width": {side}}}); one of the two files is of another model'
            )

    def rescale(self) -> float:
        value = self.values["rescale_factor"]
        if not _number(value) or not value > 0:
            raise self.refusal("rescale_factor", "a number > 0")
        return float(value)

    def triple(self, key: str) -> tuple[float, float, float]:
        """One number per channel; a lone number counts for all."""
        value = self.values[key]
        triple = [value] * 3 if _number(value) else value
        if not isinstance(triple, list) or len(triple) != 3 or not all(map(_number, triple)):
            raise self.refusal(key, "three numbers, or one")
        return float(triple[0]), float(triple[1]), float(triple[2])

    def refusal(self, key: str, allowed: str) -> DyCokeError:
        value = self.values.get(key)
        return DyCokeError(f"{self.where}{key}={value!r} is not supported; allowed: {allowed}")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
