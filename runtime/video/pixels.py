"""A decoded frame to the picture that is shown: RGB, upright, of the size that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DyCokeError
from .limits import VideoLimits
from .strips import rgb_strips

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

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Raises DyCokeError for a frame of more pixels than allowed, whatever the header says, and
        for an orientation that is none of the eight."""
        self._limits.check("max_pixels", frame.width * frame.height)
        sideways, mirrored, flipped = orientation(display_matrix(frame))
        width, height = frame.width, frame.height
        if sideways:
            width, height = height, width
        self._size = self._size or (width, height)
        # Pillow resizes rows first and then columns, each pass rounded to bytes: rows can be done a
        # strip at a time, so that a picture of 8K is never there as RGB.
        narrow = np.empty((height, self._size[0], 3), np.uint8)
        for begin, rgb in rgb_strips(frame, columns=sideways):
            rows = rgb.transpose(1, 0, 2) if sideways else rgb
            rows = rows[:, ::-1] if mirrored else rows
            narrow[begin : begin + len(rows)] = resize_picture(rows, (self._size[0], len(rows)))
        return resize_picture(narrow[::-1] if flipped else narrow, self._size)


def display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    from av.sidedata.sidedata import SideDataContainer

    # Not frame.side_data, which the frame keeps: they would refer to each other, and the picture's
    # memory be free only once garbage is collected.
    container: Any = SideDataContainer
    data = container(frame).get("DISPLAYMATRIX")
    return None if data is None else tuple(np.frombuffer(data, np.int32).tolist())


def orientation(matrix: tuple[int, ...] | None) -> tuple[bool, bool, bool]:
    """Whether a picture is shown with rows for columns, then left for right, then upside down.

    matrix: (a, b, u, c, d, v, x, y, w) of the display matrix. A pixel at (p, q) goes to
    (a p + c q, b p + d q), up to a shift; libavutil/display.h. A matrix of zeros says nothing.
    Raises DyCokeError for any other than the eight orientations.
    """
    a, b, _, c, d, *_ = matrix or (_ONE, 0, 0, 0, _ONE)
    ratio = 64  # how much larger the entries that count are: turned by less than one degree
    if a == b == c == d == 0:
        return False, False, False
    if min(abs(a), abs(d)) > ratio * max(abs(b), abs(c)):
        return False, a < 0, d < 0
    if min(abs(b), abs(c)) > ratio * max(abs(a), abs(d)):
        return True, c < 0, b < 0
    shown = ", ".join(f"{value / _ONE:.3f}" for value in (a, b, c, d))
    raise DyCokeError(
        f"its display matrix ({shown}) is not allowed; allowed: quarter turns and mirrors"
    )


def resize_picture(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """[H, W, 3] at another (width, height): bicubic with antialiasing."""
    from PIL import Image

    pixels = np.ascontiguousarray(pixels)
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
