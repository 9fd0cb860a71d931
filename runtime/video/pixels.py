"""A decoded frame to the picture that is shown: RGB, upright, of the size that was asked for."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DyCokeError
from .limits import VideoLimits

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
_ONE = 1 << 16  # a display matrix has 16 fractional bits


class PictureMaker:
    """Makes pictures of the frames of one stream: uint8 [H, W, 3].

    size: (width, height), resized as preprocess does; None: as large as the first frame. The aspect
    ratio of pixels and interlacing are left as they are stored.
    """

    def __init__(self, size: tuple[int, int] | None, limits: VideoLimits) -> None:
        self._size = size
        self._limits = limits
        self._matrices: dict[int, tuple[int, ...] | None] = {}  # by their angle
        self._holds_frame = False

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Raises DyCokeError for a frame of more pixels than allowed, whatever the header says, and
        for an orientation that is none of the eight."""
        from PIL import Image

        self._limits.check("max_pixels", frame.width * frame.height)
        matrix = self._matrix(frame)
        # Four bytes a pixel are what Pillow works on: it takes the decoder's memory as it is, and a
        # picture of 8K is not copied once more.
        plane: Any = frame.reformat(format="rgb0").planes[0]
        stored: NDArray[np.uint8] = np.ndarray(
            (frame.height, frame.width, 4), np.uint8, plane, strides=(plane.line_size, 4, 1)
        )
        upright = turn(stored, matrix)
        height, width = upright.shape[:2]
        self._size = self._size or (width, height)
        if upright is not stored:
            upright = plane = np.ascontiguousarray(upright)
        picture = Image.frombuffer(
            "RGBX", (width, height), plane, "raw", "RGBX", upright.strides[0], 1
        )
        resized = np.asarray(picture.resize(self._size, Image.Resampling.BICUBIC))
        return np.ascontiguousarray(resized[..., :3])

    def _matrix(self, frame: VideoFrame) -> tuple[int, ...] | None:
        # A frame and its side data refer to each other: only the collector frees a frame that was
        # asked for them, so one frame per angle is, and it is freed as soon as the next one comes.
        if self._holds_frame:
            gc.collect()
            self._holds_frame = False
        if frame.rotation not in self._matrices:
            data: Any = frame.side_data.get("DISPLAYMATRIX")
            matrix = None if data is None else tuple(np.frombuffer(data, np.int32).tolist())
            self._matrices[frame.rotation] = matrix
            self._holds_frame = True
        return self._matrices[frame.rotation]


def turn(pixels: NDArray[np.uint8], matrix: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """A view of [H, W, C] as the display matrix (a, b, u, c, d, v, x, y, w) shows it.

    A pixel at (p, q) goes to (a p + c q, b p + d q), up to a shift; libavutil/display.h. A matrix
    of zeros says nothing. Raises DyCokeError for any other than the eight orientations.
    """
    if matrix is None:
        return pixels
    a, b, _, c, d, *_ = matrix
    ratio = 64  # how much larger the entries that count are: turned by less than one degree
    if min(abs(a), abs(d)) > ratio * max(abs(b), abs(c)):
        right, down = a, d
    elif min(abs(b), abs(c)) > ratio * max(abs(a), abs(d)):
        pixels = pixels.transpose(1, 0, 2)
        right, down = c, b
    elif a == b == c == d == 0:
        return pixels
    else:
        shown = ", ".join(f"{value / _ONE:.3f}" for value in (a, b, c, d))
        raise DyCokeError(
            f"its display matrix ({shown}) is not allowed; allowed: quarter turns and mirrors"
        )
    return pixels[:: 1 if down > 0 else -1, :: 1 if right > 0 else -1]
