"""A decoded frame as RGB, a strip at a time: a whole picture of 8K would be 100 MB."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

_STRIP = 4 << 20  # bytes of RGB
_MARGIN = 16  # pixels on either side, for the filter that makes colours of neighbours' chroma
_GRID = 4  # pixels that share their chroma, of all formats; elsewhere it is not on one grid


def rgb_strips(frame: VideoFrame, columns: bool) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Where a strip of rows, or of columns, begins, and its pixels: uint8 [h, w, 3].

    They are those of the frame converted at once, which is done where strips would not give them.
    """
    from av.video.reformatter import VideoReformatter

    convert = VideoReformatter()
    width, height = frame.width, frame.height
    length, across = (width, height) if columns else (height, width)
    step = max(_STRIP // (3 * across) // _MARGIN, 1) * _MARGIN
    exact = frame.format.is_planar and width % _GRID == 0 and height % _GRID == 0
    if length <= step or not exact:
        yield 0, _rgb(convert, frame)
        return
    for begin in range(0, length, step):
        end = min(begin + step, length)
        low, high = max(begin - _MARGIN, 0), min(end + _MARGIN, length)
        inside = slice(begin - low, end - low)
        if columns:
            part = _cut(frame, low, 0, high - low, height)
            yield begin, _rgb(convert, part)[:, inside]
        else:
            part = _cut(frame, 0, low, width, high - low)
            yield begin, _rgb(convert, part)[inside]


def _cut(frame: VideoFrame, x: int, y: int, width: int, height: int) -> VideoFrame:
    """A part of a frame, in the frame's own memory."""
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1),
    )
    crop = graph.add("crop", f"{width}:{height}:{x}:{y}:exact=1")
    sink = graph.add("buffersink")
    source.link_to(crop)
    crop.link_to(sink)
    graph.configure()
    graph.push(frame)
    part: VideoFrame = graph.pull()  # type: ignore[assignment] # there is no sound in it
    return part


def _rgb(convert: VideoReformatter, frame: VideoFrame) -> NDArray[np.uint8]:
    # Not rgb0, though Pillow works on four bytes: libswscale 9 leaves up to four columns at the
    # right as they were in memory for some widths, and with threads also writes over the first
    # pixels of another thread's row.
    plane: Any = convert.reformat(frame, format="rgb24", threads=1).planes[0]
    return np.ndarray(
        (frame.height, frame.width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1)
    )
