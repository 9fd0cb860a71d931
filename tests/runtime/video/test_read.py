"""Video files: sampling, limits, and files that are not what they should be."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.video.limits import VideoLimits
from dycoke_trt.runtime.video.read import read_video, sample_indices
from hypothesis import given
from hypothesis import strategies as st


def make_mp4(count: int, side: int = 32) -> bytes:
    """A video whose frame i has brightness about 10 + 2 i (modulo 240)."""
    file = io.BytesIO()
    write_mp4(file, count, side)
    return file.getvalue()


def write_mp4(file: io.BytesIO | str, count: int, side: int, **options: str) -> None:
    with av.open(file, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for i in range(count):
            grey = np.full((side, side, 3), 10 + 2 * i % 240, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())


@given(total=st.integers(1, 5000), frames=st.integers(1, 64))
def test_indices_are_linspace_rounded_down(total: int, frames: int) -> None:
    got = sample_indices(total, frames)
    assert got == np.linspace(0, total - 1, frames, dtype=int).tolist()


@pytest.mark.parametrize("count", [1, 3, 16, 50])
def test_frames_are_the_sampled_ones(count: int, tmp_path: Path) -> None:
    data = make_mp4(count)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    for source in (data, path):
        frames = read_video(source, 8)
        assert frames.shape == (8, 32, 32, 3)
        assert frames.dtype == torch.uint8
        brightness = frames.float().mean(dim=(1, 2, 3))
        expected = torch.tensor([10.0 + 2 * i for i in sample_indices(count, 8)])
        torch.testing.assert_close(brightness, expected, atol=2.0, rtol=0)


def test_a_long_video_needs_memory_for_its_sampled_frames_only() -> None:
    frames = read_video(make_mp4(10_000, side=16), 16)
    assert frames.shape == (16, 16, 16, 3)


@pytest.mark.parametrize(
    "kind", ["text", "playlist", "empty", "truncated", "cut inside", "audio", "png name"]
)
def test_what_is_no_video_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    mp4 = make_mp4(40)
    write_mp4(str(tmp_path / "fast.mp4"), 400, 64, movflags="faststart")
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfast.mp4\n#EXT-X-ENDLIST\n"
    data = {
        "text": b"a film",
        "playlist": playlist,
        "empty": b"",
        "truncated": mp4[: len(mp4) // 2],  # the index is at the end, so it is gone
        "cut inside": (tmp_path / "fast.mp4").read_bytes()[:9000],
        "audio": wav(),
        "png name": b"\x89PNG\r\n\x1a\n" + b"0" * 50,
    }[kind]
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(DyCokeError) as error:
            read_video(source, 8)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith((str(path), f"{len(data)} bytes"))


def wav() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode())
    return file.getvalue()


def test_missing_file_and_bad_counts(tmp_path: Path) -> None:
    with pytest.raises(DyCokeError, match=r"nothing.mp4: no such file"):
        read_video(tmp_path / "nothing.mp4", 8)
    with pytest.raises(DyCokeError, match="num_frames=0"):
        read_video(make_mp4(2), 0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_bytes": 100}, r"[\d,]+ bytes of the encoded file; allowed: up to 100 "),
        ({"max_pixels": 1000}, r"1,024 pixels of a frame; allowed: up to 1,000 "),
        ({"max_frames": 20}, r"21 frames in the file; allowed: up to 20 "),
        ({"max_samples": 3}, r"4 sampled frames; allowed: up to 3 "),
        ({"max_seconds": 1e-9}, r"more seconds of decoding; allowed: up to 1e-09 "),
    ],
)
def test_limits_are_named_with_the_flag_that_raises_them(
    limits: dict[str, float], message: str
) -> None:
    (name,) = limits
    flag = name.replace("max_", r"--max-video-")
    with pytest.raises(DyCokeError, match=rf"^\d+ bytes: {message}\({flag} raises it\)$"):
        read_video(make_mp4(21), 4, limits=VideoLimits(**limits))


def test_limits_travel_as_parameters() -> None:
    limits = VideoLimits(max_bytes=5, max_seconds=0.5)
    assert VideoLimits.from_parameters(limits.parameters()) == limits
    assert VideoLimits.from_parameters({"bundle": "x"}) == VideoLimits()
    with pytest.raises(DyCokeError, match="max_video_frames: 'many' is not allowed"):
        VideoLimits.from_parameters({"max_video_frames": "many"})
    with pytest.raises(DyCokeError, match="--max-video-pixels 0 is not allowed"):
        VideoLimits(max_pixels=0)
