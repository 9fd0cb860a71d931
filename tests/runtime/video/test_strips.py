"""Strips are the picture, whatever its format and size, and each pixel of it is written."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.video.frame import VideoFrame
from dycoke_trt.runtime.video import strips
from dycoke_trt.runtime.video.limits import VideoLimits
from dycoke_trt.runtime.video.pixels import PictureMaker
from dycoke_trt.runtime.video.strips import rgb_strips
from dycoke_trt.tests.runtime.video.clips import clip
from numpy.typing import NDArray
from PIL import Image

FORMATS = [
    "yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p", "yuva420p",
    "nv12", "yuyv422", "p010le", "gbrp", "gray", "yuv420p10le", "yuv422p10le", "yuv444p12le",
    "rgb24", "bgra", "pal8",
]  # fmt: skip
SIZES = [(160, 128), (162, 130), (164, 97), (161, 96), (854, 48)]


def noise(pixels: str, width: int, height: int) -> VideoFrame:
    frame = VideoFrame(width, height, pixels)
    rng = np.random.default_rng(0)
    for plane in frame.planes:
        words = rng.integers(0, 1 << (10 if "10" in pixels else 8), plane.buffer_size, np.uint16)
        wide = "10" in pixels or "12" in pixels
        plane.update(words[: plane.buffer_size // 2].tobytes() if wide else bytes(words.tolist()))
    return frame


def as_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    made: Any = frame.to_ndarray(format="rgb24")
    return np.asarray(made, np.uint8)


@pytest.mark.parametrize("pixels", FORMATS)
def test_strips_are_the_picture(pixels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "_STRIP", 1)  # as narrow as they get
    for width, height in SIZES:
        frame = noise(pixels, width, height)
        whole = as_rgb(frame)
        for columns in (False, True):
            parts = list(rgb_strips(frame, columns))
            axis = 1 if columns else 0
            assert np.array_equal(np.concatenate([part for _, part in parts], axis), whole)
            assert [begin for begin, _ in parts] == list(range(0, whole.shape[axis], 16))[
                : len(parts)
            ]
            if (width, height) == (160, 128) and pixels.startswith("yuv4"):
                assert len(parts) == whole.shape[axis] // 16


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_those_of_pillow(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = noise("yuv420p", *size)
    wanted = Image.fromarray(as_rgb(frame)).resize((48, 40), Image.Resampling.BICUBIC)
    for strip in (1, 1 << 22):
        monkeypatch.setattr(strips, "_STRIP", strip)
        made = [PictureMaker((48, 40), VideoLimits())(frame) for _ in range(8)]
        assert all(np.array_equal(picture, wanted) for picture in made)
        assert np.array_equal(PictureMaker(None, VideoLimits())(frame), as_rgb(frame))


def test_a_frame_is_free_once_its_picture_is_made() -> None:
    """And not once garbage is collected, which takes longer than the picture."""

    def frames() -> int:
        return sum(isinstance(thing, VideoFrame) for thing in gc.get_objects())

    gc.collect()  # what other tests left
    gc.disable()
    try:
        before = frames()
        PictureMaker((48, 40), VideoLimits())(noise("yuv420p", 160, 128))
        assert frames() == before
    finally:
        gc.enable()


def test_memory_beside_the_decoder_does_not_grow_with_the_picture(tmp_path: Path) -> None:
    """A whole picture of 8K as RGB is 100 MB, as Pillow has it 133 MB more."""
    path = tmp_path / "8k.mp4"
    path.write_bytes(clip("mpeg4", count=2, size=(7680, 4320)))
    program = """
import sys, av, av.filter, av.video.reformatter, numpy, PIL.Image
from pathlib import Path
from dycoke_trt.runtime.video.limits import VideoLimits
from dycoke_trt.runtime.video.pixels import PictureMaker
from dycoke_trt.runtime.video.container import open_stream
from dycoke_trt.runtime.video.whole import decode_all

def peak():  # of this process alone; ru_maxrss begins with that of the one it came from
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

limits = VideoLimits()
with open_stream(Path(sys.argv[1]), limits) as (container, stream):
    frames = decode_all(container, stream, limits, limits.deadline())
    first, second = frames
    before = peak()
    PictureMaker((384, 384), limits)(first)
    print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 40_000  # KiB
