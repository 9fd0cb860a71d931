"""Files as they come: phones, cameras, cut and trimmed films, albums; tests/data/video has some."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.video.limits import VideoLimits
from dycoke_trt.runtime.video.read import read_video
from dycoke_trt.tests.runtime.video.clips import clip, decoded, picture, sampled

DATA = Path(__file__).parents[2] / "data" / "video"
ONE = 1 << 16


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("trim_start.mp4", 62),  # the edit list leaves out 38 of its 100 samples
        ("xvid.avi", 48),  # the header says 50: it counts empty chunks
        ("cut.ts", 50),  # 49 of its 99 packets belong to a keyframe that was cut off
        ("two_sizes.ts", 20),
    ],
)
def test_the_frames_that_play_are_sampled(name: str, count: int) -> None:
    data = (DATA / name).read_bytes()
    frames = decoded(data)
    assert len(frames) == count
    for wanted in (1, 4, count):
        assert torch.equal(read_video(data, wanted, size=48), sampled(frames, wanted, 48))


def test_a_phones_video_is_upright() -> None:
    frames = read_video(DATA / "rot90.mp4", 8)
    assert frames.shape == (8, 160, 120, 3)
    stored = decoded((DATA / "rot90.mp4").read_bytes())
    assert np.array_equal(frames[0], np.rot90(stored[0], 1))


# Where the stored picture's right and down go: (a, b, c, d) of the display matrix, and numpy's way.
ORIENTATIONS: dict[tuple[int, ...], Callable[[Any], Any]] = {
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (0, 1, 1, 0): lambda p: p.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    (0, 0, 0, 0): lambda p: p,  # says nothing
}


@pytest.mark.parametrize("container", ["mp4", "mov"])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_orientations(orientation: tuple[int, ...], container: str) -> None:
    a, b, c, d = orientation
    matrix = [a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30]
    data = clip(container=container, count=3, matrix=matrix, preset="ultrafast")
    turned = [ORIENTATIONS[orientation](frame) for frame in decoded(data)]
    assert np.array_equal(read_video(data, 3), np.stack(turned))
    assert torch.equal(read_video(data, 3, size=32), sampled(turned, 3, 32))


def test_an_orientation_between_is_refused() -> None:
    data = clip(count=1, matrix=[46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30])
    with pytest.raises(DyCokeError, match=r"matrix \(0.707, 0.707, -0.707, 0.707\) is not allowed"):
        read_video(data, 1)


def test_sizes_may_change_and_other_shapes_of_pixels_change_nothing() -> None:
    small = clip(container="mpegts", count=20)
    large = clip(container="mpegts", count=20, size=(96, 32), first=20)
    frames = decoded(small + large)
    assert {frame.shape for frame in frames} == {(48, 64, 3), (32, 96, 3)}
    assert torch.equal(read_video(small + large, 8, size=40), sampled(frames, 8, 40))
    assert read_video(small + large, 8).shape == (8, 48, 64, 3)  # as large as the first


def test_a_later_frame_that_is_larger_than_allowed_is_refused() -> None:
    """Whatever the header says: the decoder itself does not make room for it."""
    for codec, size in (("libx264", r"262,144|more"), ("mpeg2video", "more")):
        data = clip(codec, "mpegts", count=10) + clip(codec, "mpegts", count=10, size=(512, 512))
        with pytest.raises(DyCokeError, match=rf"({size}) pixels of a frame; allowed: up to 5,000"):
            read_video(data, 4, size=32, limits=VideoLimits(max_pixels=5_000))


def test_cover_art_is_no_video() -> None:
    with pytest.raises(DyCokeError, match=r"holds no video stream \(.*: audio, cover art\)"):
        read_video(DATA / "song_with_cover.m4a", 4)


def two_streams(sizes: list[tuple[int, int]], default: int | None, covers: int = 0) -> bytes:
    """Matroska with video streams of these sizes; the last `covers` are marked as pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska" if not covers else "mp4") as output:
        streams = []
        for i, (width, height) in enumerate(sizes):
            kind = "mjpeg" if i >= len(sizes) - covers else "libx264"
            stream: Any = output.add_stream(kind, rate=25)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if kind == "mjpeg" else "yuv420p"
            stream.disposition = 1 if i == default else 0
            if kind == "mjpeg":
                stream.disposition = av.stream.Disposition.attached_pic
            streams.append(stream)
        for stream, size in zip(streams, sizes, strict=True):
            for number in range(1 if stream.codec_context.name == "mjpeg" else 6):
                frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("sizes", "default", "covers", "chosen"),
    [
        ([(32, 32), (64, 48)], None, 0, (48, 64)),  # the larger one
        ([(32, 32), (64, 48)], 0, 0, (32, 32)),  # the default one, as ffmpeg weighs it
        ([(64, 48), (64, 32), (64, 48)], None, 0, (48, 64)),
        ([(32, 32), (128, 128)], None, 1, (32, 32)),  # a film with a large cover
    ],
)
def test_of_several_streams(
    sizes: list[tuple[int, int]], default: int | None, covers: int, chosen: tuple[int, int]
) -> None:
    frames = read_video(two_streams(sizes, default, covers), 4)
    assert frames.shape[1:3] == chosen


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "^0 bytes: the file is empty$"),
        (b"RIFF\x10\0\0\0WEBPVP8X" + bytes(30), "WebP, a picture format; taken are MP4, MOV, 3GP"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "PNG or APNG, a picture format; taken are"),
        (b"ID3\x04" + bytes(600), "MP3, which is sound; taken are"),
        (b"RIFF\x10\0\0\0WAVEfmt " + bytes(30), "WAV, which is sound"),
        (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02" + bytes(600), "MXF; taken are"),
        (b"#EXTM3U\n#EXTINF:1,\na.ts\n", "a playlist, which names other files"),
        (b"\0\0\0\x18ftypmp42" + bytes(16), "MP4 or MOV without its index"),
        (b"some words" * 50, "not a readable video .*; taken are MP4"),
    ],
)
def test_what_a_file_is_instead(data: bytes, message: str) -> None:
    with pytest.raises(DyCokeError, match=message) as error:
        read_video(data, 4)
    assert "\n" not in str(error.value)


def test_an_mp4_that_is_not_complete_is_refused_and_a_stream_plays_to_where_it_ends(
    tmp_path: Path,
) -> None:
    with (
        av.open(io.BytesIO(clip()), "r") as source,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    mp4 = (tmp_path / "fast.mp4").read_bytes()
    with pytest.raises(DyCokeError, match=r"the file ends at byte [\d,]+, its index names frames"):
        read_video(mp4[: len(mp4) * 3 // 4], 4)
    for container in ("mpegts", "matroska"):
        whole = clip(container=container)
        cut = whole[: len(whole) * 3 // 4]
        frames = decoded(cut)
        assert 60 < len(frames) < 120
        assert torch.equal(read_video(cut, 6, size=32), sampled(frames, 6, 32))
