"""Small videos of many kinds, made by FFmpeg's own encoders: each frame shows its number."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from dycoke_trt.runtime.video.read import sample_indices
from numpy.typing import NDArray
from PIL import Image


def picture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A bar that moves, on a ground that becomes brighter, in colour."""
    made = np.empty((height, width, 3), np.uint8)
    made[:] = (30 + number % 100, 200 - number % 100, 60)
    left = number * 3 % max(width - 6, 1)
    made[:, left : left + 6] = (230, 230, 20 + 2 * number % 200)
    return made


def clip(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    count: int = 120,
    size: tuple[int, int] = (64, 48),
    pixels: str = "yuv420p",
    keys: int = 20,
    first: int = 0,
    times: Callable[[int], int] = lambda i: i,
    matrix: Sequence[int] | None = None,
    mux: dict[str, str] | None = None,
    **codec_options: str,
) -> bytes:
    """count frames at 25 a second; keys: frames from one keyframe to the next; first: number of the
    first; times: when frame i is shown, in frames; mux: options of the container."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=mux or {}) as output:
        stream: Any = output.add_stream(codec, rate=25, options=codec_options)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = keys
        stream.codec_context.thread_count = 1  # pictures are small: more cost more than they give
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(first + i, *size), format="rgb24")
            frame.pts = times(i)
            frame.time_base = Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def decoded(data: bytes, stream: int = 0) -> list[NDArray[np.uint8]]:
    """All frames as PyAV gives them, [H, W, 3]; packets that cannot be decoded are left out."""
    frames: list[NDArray[np.uint8]] = []
    with av.open(io.BytesIO(data), "r") as container:
        video = container.streams.video[stream]
        for packet in container.demux(video):
            try:
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
            except av.error.InvalidDataError:
                continue
    return frames


def sampled(frames: list[NDArray[np.uint8]], count: int, size: int) -> torch.Tensor:
    """What the model has to see of them: [count, size, size, 3]."""
    chosen = [
        Image.fromarray(np.ascontiguousarray(frames[i])).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        for i in sample_indices(len(frames), count)
    ]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in chosen]))
