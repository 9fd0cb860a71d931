"""Opens a video file and chooses its stream. Nothing is decoded here."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ...core.errors import DyCokeError
from .limits import VideoLimits

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"
TAKEN = "MP4, MOV, 3GP, Matroska, WebM, AVI, MPEG-TS, MPEG-PS, FLV, ASF/WMV, Ogg, GIF"
# Files that are sent by mistake: (offset, bytes there, name). None of them is opened to find out.
_OTHERS = (
    (8, b"WEBP", "WebP, a picture format"),
    (0, b"\x89PNG", "PNG or APNG, a picture format"),
    (0, b"\xff\xd8\xff", "JPEG, a picture format"),
    (0, b"BM", "BMP, a picture format"),
    (0, b"II*\0", "TIFF, a picture format"),
    (4, b"ftypheic", "HEIC, a picture format"),
    (4, b"ftypavif", "AVIF, a picture format"),
    (0, b"ID3", "MP3, which is sound"),
    (0, b"\xff\xfb", "MP3, which is sound"),
    (0, b"\xff\xf1", "AAC, which is sound"),
    (0, b"fLaC", "FLAC, which is sound"),
    (8, b"WAVE", "WAV, which is sound"),
    (0, b"\x06\x0e\x2b\x34", "MXF"),
    (0, b"DKIF", "IVF"),
    (0, b"YUV4MPEG2", "YUV4MPEG2"),
    (0, b"\0\0\0\x01", "a bare H.264 or HEVC stream, or cut out of a larger file"),
    (0, b"#EXTM3U", "a playlist, which names other files"),
    (0, b"ffconcat", "a playlist, which names other files"),
    (0, b"<", "XML or HTML"),
    (0, b"{", "JSON"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"%PDF", "PDF"),
)
_DEFAULT_WEIGHT = 5_000_000  # FFmpeg's own, in pixels: fftools/ffmpeg_mux_init.c, map_auto_video


def describe(source: Path | bytes | BinaryIO) -> str:
    """How messages call the file."""
    if isinstance(source, Path):
        return str(source)
    return f"{len(source) if isinstance(source, bytes) else source.seek(0, io.SEEK_END)} bytes"


@contextmanager
def open_stream(
    source: Path | bytes | BinaryIO, limits: VideoLimits
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and the stream that plays, with the size in its header within the limits.

    Raises DyCokeError for what is missing, empty, too large, in no container of TAKEN, without a
    video stream, or of a codec that this FFmpeg does not decode.
    """
    import av

    with _open(source) as file:
        size = file.seek(0, io.SEEK_END)
        if size == 0:
            raise DyCokeError("the file is empty")
        limits.check("max_bytes", size)
        file.seek(0)
        head = file.read(16)
        file.seek(0)
        try:
            # FFmpeg sees an open file and plain containers only, so that it follows nothing that a
            # file names: no URL, no playlist, no other file. max_pixels also guards its probing.
            container = av.open(
                file,
                mode="r",
                options={
                    "protocol_whitelist": "",
                    "format_whitelist": _DEMUXERS,
                    "max_pixels": str(decoder_pixels(limits)),
                },
                metadata_errors="replace",
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise DyCokeError(_unreadable(head, error)) from None
        with container:
            yield container, _choose(container, limits)


def decoder_pixels(limits: VideoLimits) -> int:
    """The decoder's own bound: it counts padding, so the exact bound is ours, on each frame."""
    return limits.max_pixels + limits.max_pixels // 16 + 65_536


def _open(source: Path | bytes | BinaryIO) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return _open_file(source) if isinstance(source, Path) else nullcontext(source)


def _open_file(path: Path) -> io.BufferedReader:
    try:
        if not path.is_file():
            kind = "no such file" if not path.exists() else "not a file"
            raise DyCokeError(kind)
        return path.open("rb")
    except OSError as error:
        raise DyCokeError(f"cannot be read ({error.strerror})") from None


def _unreadable(head: bytes, error: Exception) -> str:
    for offset, signature, name in _OTHERS:
        if head[offset:].startswith(signature):
            return f"the file is {name}; taken are {TAKEN}"
    reason = getattr(error, "strerror", None) or str(error)
    if head[4:8] == b"ftyp":
        return f"MP4 or MOV without its index ({reason}); is it complete?"
    if reason == "Invalid argument":  # what FFmpeg says of a container that is not in the list
        reason = "an unknown container"
    return f"not a readable video ({reason}); taken are {TAKEN}"


def _choose(container: InputContainer, limits: VideoLimits) -> VideoStream:
    """The stream that ffmpeg plays: most pixels, the default one ahead; cover art is no video."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        kinds = [stream.type for stream in container.streams if stream.type != "video"]
        covers = ["cover art"] if container.streams.video else []
        held = ", ".join(dict.fromkeys(kinds + covers)) or "nothing"
        raise DyCokeError(f"holds no video stream ({container.format.name}: {held})")
    decoded = [s for s in streams if s.codec_context is not None]
    if not decoded:
        raise DyCokeError("holds a video stream of a codec that this FFmpeg cannot decode")

    def rank(stream: VideoStream) -> int:
        context = stream.codec_context
        default = bool(stream.disposition & Disposition.default)
        return context.width * context.height + _DEFAULT_WEIGHT * default

    chosen = max(decoded, key=rank)  # of equals the first
    limits.check("max_pixels", chosen.codec_context.width * chosen.codec_context.height)
    return chosen
