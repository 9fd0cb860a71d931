"""Pixel values as transformers' processors make them, or a refusal that names the value."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dycoke_trt.arch.spec import PixelScale
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.export.processor import read_pixel_scale
from dycoke_trt.runtime.resize import resize

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

SIDE = 48
SIZE = {"height": SIDE, "width": SIDE}
HALF = {"size": SIZE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's CLIP, transformers' class default


def write(directory: Path, file: str, values: Any) -> None:
    (directory / file).write_text(json.dumps(values))


ACCEPTED: dict[str, dict[str, Any]] = {
    "published": {**HALF, "resample": 3, "rescale_factor": 1 / 255, "do_pad": True},
    "class defaults": {"size": SIZE},
    "flags of null are off": {
        **HALF, "do_rescale": None, "rescale_factor": None, "do_normalize": None
    },
    "not normalised": {**HALF, "do_normalize": False},
    "not rescaled": {**HALF, "do_rescale": False},
    "neither": {**HALF, "do_rescale": False, "do_normalize": False},
    "other mean and std": {**HALF, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]},
    "other factor": {**HALF, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3},
    "std unused": {**HALF, "do_normalize": False, "image_std": [0.0] * 3},
    "factor unused": {**HALF, "do_rescale": False, "rescale_factor": 7},
    "crop to the size": {**HALF, "do_center_crop": True, "crop_size": SIZE},
    "crop unused": {**HALF, "do_center_crop": False, "crop_size": {"height": 9, "width": 9}},
    "a list as size": {**HALF, "size": [SIDE, SIDE]},
    "one side of a square": {**HALF, "size": SIDE, "default_to_square": True},
    "grey frames stay": {**HALF, "do_convert_rgb": False},
}  # fmt: skip


@pytest.mark.parametrize("values", ACCEPTED.values(), ids=ACCEPTED)
def test_pixels_are_those_of_transformers(values: dict[str, Any], tmp_path: Path) -> None:
    """By its processor on Pillow; several square images are resized as a video's frames are."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 70, 70, 3), dtype=np.uint8)
    processor = LlavaOnevisionImageProcessorPil(**values)
    output = processor([list(frames)], return_tensors="np")["pixel_values"]
    wanted = np.stack([image[0] for image in output.reshape(2, 1, 3, SIDE, SIDE)])
    write(tmp_path, "preprocessor_config.json", values)
    factor, offset = read_pixel_scale(tmp_path, SIDE).affine()
    found = resize(torch.from_numpy(frames), SIDE) * factor + offset
    scale = float(np.abs(wanted).max())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-6 * scale)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no resize": ({"do_resize": False}, "do_resize=False"),
    "bilinear": ({"resample": 2}, "resample=2 is not supported; allowed: 3 .bicubic"),
    "lanczos by name": ({"resample": "lanczos"}, "resample='lanczos'"),
    "nearest": ({"resample": 0}, "resample=0"),
    "true is no filter": ({"resample": True}, "resample=True"),
    "filter null": ({"resample": None}, "resample=None"),
    "resize null": ({"do_resize": None}, "do_resize=None"),
    "factor null": ({"rescale_factor": None}, "rescale_factor=None"),
    "mean null": ({"image_mean": None}, "image_mean=None"),
    "size null": ({"size": None}, "size makes frames None"),
    "not a flag": ({"do_rescale": 1}, "do_rescale=1"),
    "a flag as text": ({"do_normalize": "false"}, "do_normalize='false'"),
    "factor 0": ({"rescale_factor": 0}, "rescale_factor=0"),
    "factor as text": ({"rescale_factor": "1/255"}, "rescale_factor='1/255'"),
    "factor infinite": ({"rescale_factor": float("inf")}, "rescale_factor=inf"),
    "std 0": ({"image_std": [0.5, 0, 0.5]}, "image_std=.*divided"),
    "std nan": ({"image_std": [0.5, float("nan"), 0.5]}, "image_std=.*three numbers"),
    "one channel": ({"image_mean": [0.5]}, r"image_mean=\[0.5\] is not supported"),
    "four channels": ({"image_mean": [0.5] * 4}, "image_mean="),
    "mean as text": ({"image_mean": "0.5"}, "image_mean='0.5'"),
    "shortest edge": ({"size": {"shortest_edge": SIDE}}, "size makes frames .*shortest_edge"),
    "a lone number": ({"size": SIDE}, "size makes frames 48"),
    "another size": ({"size": {"height": 24, "width": 24}}, "size makes .*takes 48 x 48"),
    "not square": ({"size": {"height": 48, "width": 64}}, "size makes .*takes 48 x 48"),
    "height alone": ({"size": {"height": 48}}, "size makes .*takes 48 x 48"),
    "a crop": ({"do_center_crop": True, "crop_size": {"height": 9, "width": 9}}, "crop_size makes"),
    "a crop to nothing": ({"do_center_crop": True}, "crop_size makes frames None"),
    "another class": ({"video_processor_type": "Qwen2VLVideoProcessor"}, ".*='Qwen2VL"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("nested", [False, True])
def test_values_that_are_refused(
    change: dict[str, Any], message: str, nested: bool, tmp_path: Path
) -> None:
    values, where = {**HALF, **change}, "video_preprocessor_config.json: "
    if nested:
        write(tmp_path, "processor_config.json", {"video_processor": values})
        where = r"processor_config.json: video_processor\."
    else:
        write(tmp_path, "video_preprocessor_config.json", values)
    with pytest.raises(DyCokeError, match=f"{where}{message}") as caught:
        read_pixel_scale(tmp_path, SIDE)
    assert "\n" not in str(caught.value)


def test_the_place_that_counts(tmp_path: Path) -> None:
    """transformers 5: nested, then the video's own file, then the image's."""

    def mean() -> float:
        return read_pixel_scale(tmp_path, SIDE).mean[0]

    with pytest.raises(DyCokeError, match="says nowhere how pixels are scaled"):
        mean()
    write(tmp_path, "processor_config.json", {"image_processor": {**HALF, "image_mean": 0.1}})
    assert mean() == 0.1
    write(tmp_path, "preprocessor_config.json", {**HALF, "image_mean": 0.2})
    assert mean() == 0.2
    write(tmp_path, "video_preprocessor_config.json", {**HALF, "image_mean": 0.3})
    assert mean() == 0.3
    write(tmp_path, "processor_config.json", {"num_image_tokens": 9})
    assert mean() == 0.3
    write(tmp_path, "processor_config.json", {"video_processor": {**HALF, "image_mean": 0.4}})
    assert mean() == 0.4
    write(tmp_path, "processor_config.json", {"video_processor": {"size": SIZE}})
    assert mean() == CLIP_MEAN[0]  # a block without a mean does not look elsewhere
    write(tmp_path, "processor_config.json", {"video_processor": {}})
    with pytest.raises(DyCokeError, match=r"size makes frames .*384.*takes 48 x 48"):
        mean()
    write(tmp_path, "processor_config.json", {"video_processor": None})
    with pytest.raises(DyCokeError, match="video_processor is None; allowed: an object"):
        mean()


def test_the_processor_counts_on_the_towers_patches(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", HALF)
    write(tmp_path, "processor_config.json", {"num_image_tokens": 36})
    assert read_pixel_scale(tmp_path, SIDE, 36) == PixelScale()
    with pytest.raises(DyCokeError, match="num_image_tokens=36, the vision tower has 16 patches"):
        read_pixel_scale(tmp_path, SIDE, 16)
