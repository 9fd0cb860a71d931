"""mp4 (H.264, yuv420p) in memory, through PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

FRAMES_PER_SECOND = 8
# One thread: samples are made in parallel by process, and one stream of 96 pixels gains nothing.
_OPTIONS = {"preset": "ultrafast", "crf": "20", "threads": "1"}


def encode_mp4(frames: NDArray[np.uint8]) -> bytes:
    """Frames uint8 [F, H, W, 3] (RGB, H and W even) as an mp4 file of 8 frames per second.

    Raises ValueError for another shape or dtype.
    """
    even = frames.ndim == 4 and frames.shape[1] % 2 == 0 and frames.shape[2] % 2 == 0
    if not even or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 [F, H, W, 3] with H, W even, got {frames.dtype} "
            f"{list(frames.shape)}"
        )
    height, width = frames.shape[1:3]
    return encode_h264(frames, height, width, FRAMES_PER_SECOND, _OPTIONS)


def encode_h264(
    frames: Iterable[NDArray[np.uint8]], height: int, width: int, rate: int, options: dict[str, str]
) -> bytes:
    """The same of frames that are made one by one; rate: per second, options: of x264."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def decode_mp4(data: bytes) -> NDArray[np.uint8]:
    """All frames of the first video stream, uint8 [F, H, W, 3], RGB.

    Raises ValueError for data that is no video or holds no frame.
    """
    import av

    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"not a readable video: {error}") from error
    if not frames:
        raise ValueError("not a readable video: it holds no frame")
    return np.stack(frames)


def round_trip(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames as a decoder hands them back: what training and evaluation look at."""
    return decode_mp4(encode_mp4(frames))
