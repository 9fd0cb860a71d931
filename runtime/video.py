"""Video files to frames: decodes with PyAV and keeps only the sampled frames."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import DyCokeError

if TYPE_CHECKING:
    from av.container import InputContainer

MAX_SOURCE_FRAMES = 432_000  # four hours at 30 frames per second
MAX_SIDE = 8192  # pixels
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"


def sample_indices(total: int, num_frames: int) -> list[int]:
    """Which of `total` frames are taken: linspace from first to last, rounded down, with repeats.

    LLaVA-OneVision's rule (numpy.linspace(0, total-1, num_frames, dtype=int)): a video of one frame
    gives it `num_frames` times.
    """
    if num_frames == 1:
        return [0]
    step = (total - 1) / (num_frames - 1)
    return [min(int(i * step), total - 1) for i in range(num_frames - 1)] + [total - 1]


def read_video(source: Path | bytes, num_frames: int) -> Tensor:
    """Samples frames of a video file: uint8 [num_frames, H, W, 3], RGB.

    source: a path, or the bytes of an encoded file. Raises DyCokeError, one line, for what is not
    a video, has no frame, ends early, or is larger than the limits above.
    """
    import av

    name = str(source) if isinstance(source, Path) else f"{len(source)} bytes"
    if num_frames < 1:
        raise DyCokeError(f"num_frames={num_frames} is not allowed; allowed: an integer >= 1")
    if isinstance(source, Path) and not source.is_file():
        raise DyCokeError(f"{source}: no such file")
    try:
        with _open(source) as container:
            total = _count(container, name)
        with _open(source) as container:
            frames = _decode(container, sample_indices(total, num_frames), total, name)
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise DyCokeError(f"{name}: not a readable video ({reason})") from None
    return torch.stack(frames)


@contextmanager
def _open(source: Path | bytes) -> Iterator[InputContainer]:
    import av

    # A path is opened here, and only plain containers are allowed, so that FFmpeg follows nothing
    # that a file names: no URL, no playlist, no other file.
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        options = {"protocol_whitelist": "", "format_whitelist": _CONTAINERS}
        with av.open(file, mode="r", options=options, metadata_errors="replace") as container:
            yield container


def _count(container: InputContainer, name: str) -> int:
    """Frames in the file, by reading its packets without decoding them."""
    if not container.streams.video:
        raise DyCokeError(f"{name}: holds no video stream")
    stream = container.streams.video[0]
    if max(stream.width, stream.height) > MAX_SIDE:
        raise DyCokeError(
            f"{name}: {stream.width} x {stream.height} pixels; allowed: up to {MAX_SIDE} a side"
        )
    total = 0
    for packet in container.demux(stream):
        total += packet.size > 0
        if total > MAX_SOURCE_FRAMES:
            raise DyCokeError(f"{name}: more than {MAX_SOURCE_FRAMES} frames; cut the video")
    if total < stream.frames:
        raise DyCokeError(f"{name}: ends after {total} of {stream.frames} frames; is it complete?")
    if total == 0:
        raise DyCokeError(f"{name}: holds no frame")
    return total


def _decode(container: InputContainer, indices: list[int], total: int, name: str) -> list[Tensor]:
    """The frames at `indices` (ascending, with repeats), uint8 [H, W, 3] each."""
    wanted, taken = set(indices), {}
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    seen = 0
    for i, frame in enumerate(container.decode(stream)):
        seen = i + 1
        if i in wanted:
            taken[i] = torch.from_numpy(frame.to_ndarray(format="rgb24"))
        if i == indices[-1]:
            break
    missing = sorted(wanted - set(taken))
    if missing:
        raise DyCokeError(f"{name}: frame {missing[0]} of {total} cannot be decoded (got {seen})")
    return [taken[i] for i in indices]
