"""Seeking gives what decoding everything gives, on every kind of file, or says that it does not."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import av
import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.video import read
from dycoke_trt.runtime.video.container import open_stream
from dycoke_trt.runtime.video.index import index_packets
from dycoke_trt.runtime.video.limits import VideoLimits
from dycoke_trt.runtime.video.pixels import PictureMaker
from dycoke_trt.runtime.video.read import read_video
from dycoke_trt.runtime.video.seek import Inexact, Seeker
from dycoke_trt.tests.runtime.video.clips import clip, decoded, sampled

LIMITS = VideoLimits()
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
OPEN = {"x264-params": "open-gop=1", "preset": "veryfast", "bf": "3"}
QUICK = {"preset": "ultrafast"}
B_FRAMES = {"preset": "veryfast", "bf": "3"}


def cut(data: bytes, begin: float, end: float = 1.0) -> bytes:
    """A piece of a transport stream, as a recorder begins and ends it."""
    packets = len(data) // 188
    return data[int(begin * packets) * 188 : int(end * packets) * 188]


def joined(*gaps: int) -> bytes:
    """Transport streams one after the other, each beginning at its own time."""
    parts = [clip(container="mpegts", count=60, times=lambda i, g=gap: i + g) for gap in gaps]
    return b"".join(parts)


SEEKABLE: dict[str, Callable[[], bytes]] = {
    "mp4": lambda: clip(**B_FRAMES),
    "mov": lambda: clip(container="mov", **B_FRAMES),
    "fragmented mp4": lambda: clip(mux=FRAGMENTS, **B_FRAMES),
    "matroska": lambda: clip(container="matroska", **B_FRAMES),
    "mpegts": lambda: clip(container="mpegts", **B_FRAMES),
    "flv": lambda: clip(container="flv", **B_FRAMES),
    "open GOP": lambda: clip(**OPEN),
    "open GOP, mpegts": lambda: clip(container="mpegts", **OPEN),
    "cut open GOP": lambda: cut(clip(container="mpegts", **OPEN), 0.2, 0.9),
    "interlaced": lambda: clip(flags="+ildct+ilme", **{"x264-params": "tff=1"}, **QUICK),
    "10 bits": lambda: clip(pixels="yuv420p10le", **QUICK),
    "4:4:4, odd size": lambda: clip(size=(63, 47), pixels="yuv444p", **QUICK),
    "varying rate": lambda: clip(times=lambda i: i * i, **QUICK),
    "intra only": lambda: clip(keys=1, **QUICK),
    "one keyframe": lambda: clip(keys=1000, **QUICK),
    "hevc": lambda: clip("libx265", **{"x265-params": "log-level=none:open-gop=1"}, **QUICK),
    "hevc, mpegts": lambda: clip("libx265", "mpegts", **{"x265-params": "log-level=none"}, **QUICK),
    "vp8": lambda: clip("libvpx", "webm", deadline="realtime", **{"cpu-used": "8"}),
    "vp9": lambda: clip("libvpx-vp9", "webm", deadline="realtime", **{"cpu-used": "8"}),
    "mpeg2, mpegts": lambda: clip("mpeg2video", "mpegts", bf="2"),
    "mpeg4": lambda: clip("mpeg4", bf="2"),
    "mpeg4, avi": lambda: clip("mpeg4", "avi"),
    "mjpeg, avi": lambda: clip("mjpeg", "avi", pixels="yuvj420p"),
    "gif": lambda: clip("gif", "gif", pixels="rgb8"),
    "wmv": lambda: clip("wmv2", "asf"),
    "one frame": lambda: clip(count=1, **QUICK),
    "two frames": lambda: clip(count=2, **B_FRAMES),
    "cut mpeg2": lambda: cut(clip("mpeg2video", "mpegts", bf="2"), 0.3),
    "times jump forward": lambda: joined(0, 5000),
}
# Where packets have no times of their own, everything is decoded.
WITHOUT_TIMES: dict[str, Callable[[], bytes]] = {
    "h264, avi": lambda: clip(container="avi", **B_FRAMES),
    "times that come twice": lambda: joined(0, 0),
}
# Where it shows while seeking whether it is exact.
DOUBTFUL: dict[str, Callable[[], bytes]] = {
    "program stream": lambda: clip("mpeg2video", "vob", bf="2"),
    "intra refresh": lambda: clip(**{"x264-params": "intra-refresh=1"}, bf="0", preset="veryfast"),
    "a hole": lambda: (lambda ts: cut(ts, 0, 0.4) + cut(ts, 0.5))(
        clip(container="mpegts", **B_FRAMES)
    ),
}


def by_seeking(data: bytes, count: int, size: int) -> torch.Tensor:
    """Raises Inexact where read_video would decode everything."""
    with open_stream(data, LIMITS) as (container, stream):
        index = index_packets(container, stream, LIMITS, LIMITS.deadline())
        make = PictureMaker((size, size), LIMITS)
        seeker = Seeker(container, stream, index, make, LIMITS, LIMITS.deadline())
        return torch.from_numpy(read._by_seeking(seeker, count))


@pytest.mark.parametrize("kind", SEEKABLE)
def test_seeking_gives_the_same_frames(kind: str) -> None:
    data = SEEKABLE[kind]()
    frames = decoded(data)
    for count in (1, 2, 16):
        assert torch.equal(by_seeking(data, count, 24), sampled(frames, count, 24))


@pytest.mark.parametrize("kind", WITHOUT_TIMES)
def test_seeking_says_where_it_cannot(kind: str) -> None:
    with pytest.raises(Inexact, match=r"without a time of their own|are not those of the packets"):
        by_seeking(WITHOUT_TIMES[kind](), 16, 24)


@pytest.mark.parametrize("kind", [*WITHOUT_TIMES, *DOUBTFUL])
def test_what_seeking_cannot_reach_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_seeking_pays", lambda *_: True)
    data = (WITHOUT_TIMES | DOUBTFUL)[kind]()
    assert torch.equal(read_video(data, 16, size=24), sampled(decoded(data), 16, 24))


def marked(data: bytes) -> bytes:
    """A transport stream whose receiver says of each packet that it has errors."""
    packets = bytearray(data)
    for start in range(2 * 188, len(packets), 188):  # behind the tables
        packets[start + 1] |= 0x80
    return bytes(packets)


def test_where_every_packet_is_marked_as_damaged_what_decodes_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a second look at the damage finds no frame at all."""
    monkeypatch.setattr(read, "_seeking_pays", lambda *_: True)
    data = marked(clip(container="mpegts", count=30, keys=40, **QUICK))
    frames = decoded(data)
    with open_stream(data, LIMITS) as (container, stream):
        index = index_packets(container, stream, LIMITS, LIMITS.deadline())
    assert index.doubtful
    assert torch.equal(read_video(data, 8, size=24), sampled(frames, 8, 24))
    starts: list[int] = []
    decode = Seeker._decode

    def once(self, arriving, first):
        starts.append(1)
        return decode(self, arriving, first) if len(starts) == 1 else iter(())

    monkeypatch.setattr(Seeker, "_decode", once)
    with pytest.raises(Inexact, match="damage leaves no frame"):
        by_seeking(data, 8, 24)
    starts.clear()
    assert torch.equal(read_video(data, 8, size=24), sampled(frames, 8, 24))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
def test_a_video_of_which_no_packet_can_be_decoded_is_refused(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_seeking_pays", lambda *_: True)
    data = clip(codec, "matroska", count=12)
    with av.open(io.BytesIO(data), "r") as source:
        pictures = [bytes(packet) for packet in source.demux(video=0) if packet.size]
    for coded in pictures:
        data = data.replace(coded, b"\xff" * len(coded))
    with pytest.raises(DyCokeError, match="no frame can be decoded"):
        read_video(data, 4, size=24)


def test_few_frames_of_a_long_video_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred times the length costs no more decoded frames."""
    counts = {}
    for copies in (5, 50):
        data = lengthened(clip(count=120, **QUICK), copies)
        made: list[int] = []
        decode = Seeker._decode

        def counted(self, *arguments, made=made, decode=decode):
            for frame in decode(self, *arguments):
                made.append(1)
                yield frame

        with monkeypatch.context() as patch:
            patch.setattr(Seeker, "_decode", counted)
            read_video(data, 8, size=16)
        counts[copies] = len(made)
    assert 0 < counts[50] <= counts[5] + 8 * 20


def lengthened(data: bytes, copies: int) -> bytes:
    """The same packets again and again, without encoding them (ffmpeg's -stream_loop)."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output, av.open(io.BytesIO(data), "r") as source:
        stream = source.streams.video[0]
        to = output.add_stream_from_template(stream)
        packets = [p for p in source.demux(stream) if p.size]
        length = sum(p.duration for p in packets)
        for copy in range(copies):
            source.seek(0)
            packet: Any
            for packet in source.demux(stream):
                if packet.size:
                    packet.pts += copy * length
                    packet.dts += copy * length
                    packet.stream = to
                    output.mux(packet)
    return file.getvalue()
