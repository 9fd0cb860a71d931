"""Video files to the frames that a model sees: which are sampled, and how they are reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DyCokeError
from .container import describe, open_stream
from .index import PacketIndex, check_complete, index_packets
from .limits import Deadline, VideoLimits
from .pixels import PictureMaker
from .seek import Inexact, Seeker
from .whole import decode_all

if TYPE_CHECKING:
    from torch import Tensor


def sample_indices(total: int, num_frames: int) -> list[int]:
    """Which of `total` frames are taken: linspace from first to last, rounded down, with repeats.

    LLaVA-OneVision's rule (numpy.linspace(0, total-1, num_frames, dtype=int)): a video of one frame
    gives it `num_frames` times.
    """
    if num_frames == 1:
        return [0]
    step = (total - 1) / (num_frames - 1)
    return [min(int(i * step), total - 1) for i in range(num_frames - 1)] + [total - 1]


def read_video(
    source: Path | bytes,
    num_frames: int,
    *,
    size: int | None = None,
    limits: VideoLimits | None = None,
) -> Tensor:
    """As `read_frames`, for torch."""
    import torch  # not in a process that only reads videos

    return torch.from_numpy(read_frames(source, num_frames, size=size, limits=limits))


def read_frames(
    source: Path | bytes | BinaryIO,
    num_frames: int,
    *,
    size: int | None = None,
    limits: VideoLimits | None = None,
) -> NDArray[np.uint8]:
    """Samples the frames that play: uint8 [num_frames, size, size, 3], RGB, upright.

    source: a path, the bytes of an encoded file, or an open one, which stays open. size: what the
    vision tower takes; frames are resized as they are decoded, so that memory does not grow with
    the video's own size. None leaves frames as large as the first one. Raises DyCokeError, one
    line that begins with the file, for what is not a video, has no frame, is incomplete, or goes
    beyond a limit.
    """
    limits = limits or VideoLimits()
    if num_frames < 1:
        raise DyCokeError(f"num_frames={num_frames} is not allowed; allowed: an integer >= 1")
    try:
        limits.check("max_samples", num_frames)
        return _read(source, num_frames, None if size is None else (size, size), limits)
    except DyCokeError as error:
        raise DyCokeError(f"{describe(source)}: {error}") from None


def _read(
    source: Path | bytes | BinaryIO,
    num_frames: int,
    size: tuple[int, int] | None,
    limits: VideoLimits,
) -> NDArray[np.uint8]:
    deadline = limits.deadline()
    with open_stream(source, limits) as (container, stream):
        check_complete(container, stream)
        index = index_packets(container, stream, limits, deadline)
        if _seeking_pays(index, num_frames):
            try:
                make = PictureMaker(size, limits)
                seeker = Seeker(container, stream, index, make, limits, deadline)
                return _by_seeking(seeker, num_frames)
            except Inexact:
                pass  # costs time, never a wrong frame
    return _by_decoding_all(source, len(index.playing), num_frames, size, limits, deadline)


def _seeking_pays(index: PacketIndex, num_frames: int) -> bool:
    """Whether fewer frames are decoded by it: from each keyframe about half of what follows it."""
    apart = len(index) / max(len(index.keys), 1)
    return (num_frames + 2) * (apart / 2 + 8) < len(index)


def _by_seeking(seeker: Seeker, num_frames: int) -> NDArray[np.uint8]:
    times = [seeker.playing[i] for i in sample_indices(len(seeker.playing), num_frames)]
    pictures = {pts: seeker.picture(pts) for pts in dict.fromkeys(times)}
    return np.stack([pictures[pts] for pts in times])


def _by_decoding_all(
    source: Path | bytes | BinaryIO,
    guess: int,
    num_frames: int,
    size: tuple[int, int] | None,
    limits: VideoLimits,
    deadline: Deadline,
) -> NDArray[np.uint8]:
    """Frames are counted by decoding them; those of the guessed number are taken along."""
    while True:
        indices = sample_indices(guess, num_frames)
        wanted, pictures, total = set(indices), {}, 0
        make = PictureMaker(size, limits)
        with open_stream(source, limits) as (container, stream):
            for frame in decode_all(container, stream, limits, deadline):
                if total in wanted:
                    pictures[total] = make(frame)
                total += 1
                del frame  # or it would stay until the next one is decoded
        if total == 0:
            raise DyCokeError("no frame can be decoded")
        if total == guess:
            return np.stack([pictures[i] for i in indices])
        guess = total
