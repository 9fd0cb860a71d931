"""Video files: sampling, limits, and files that are not what they should be."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime import video
from dycoke_trt.runtime.preprocess import resize
from dycoke_trt.runtime.video import read_video, sample_indices
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


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_SOURCE_FRAMES", 20)
    with pytest.raises(DyCokeError, match="more than 20 frames"):
        read_video(make_mp4(21), 4)
    monkeypatch.setattr(video, "MAX_SIDE", 16)
    with pytest.raises(DyCokeError, match="32 x 32 pixels; allowed: up to 16"):
        read_video(make_mp4(2), 4)


def processor(size: int) -> Any:
    """LLaVA-OneVision's own image processor, in the form that needs no torchvision."""
    import transformers

    name = "LlavaOnevisionImageProcessor"
    kind = getattr(transformers, name + "Pil", None) or getattr(transformers, name)
    return kind(
        size={"height": size, "width": size}, do_rescale=False, do_normalize=False,
        image_grid_pinpoints=[[size, size]],
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(48, 64), (200, 100), (384, 384), (37, 501), (540, 960)])
@pytest.mark.parametrize("size", [96, 384])
def test_resize_equals_the_processors(shape: tuple[int, int], size: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    got = resize(torch.from_numpy(frame)[None], size)[0].int()
    pixels = processor(size)(images=[frame], return_tensors="np").pixel_values
    expected = torch.from_numpy(np.asarray(pixels))[0, 0].int()  # the whole picture comes first
    difference = (got - expected).abs()
    assert difference.max() <= 1
    assert (difference == 0).float().mean() >= 0.99


def test_resize_refuses_other_tensors() -> None:
    for bad in (torch.zeros(2, 4, 4, 3), torch.zeros(4, 4, 3, dtype=torch.uint8)):
        with pytest.raises(DyCokeError, match=r"allowed: uint8 \[F, H, W, 3\]"):
            resize(bad, 8)
    with pytest.raises(DyCokeError, match="empty"):
        resize(torch.zeros(0, 4, 4, 3, dtype=torch.uint8), 8)
    same = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(resize(same, 8), same.permute(0, 3, 1, 2))
