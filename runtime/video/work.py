"""What a video of a request has to become: frames of the tower's size. No torch in here."""

from __future__ import annotations

import io
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .limits import VideoLimits
from .pixels import resize_picture
from .read import read_frames

Frames = NDArray[np.uint8]


class VideoWork(NamedTuple):
    """source: an encoded file, or frames as pixels, uint8 [num_frames, H, W, 3]. size: the tower's.
    limits: of encoded files; whoever has pixels has checked them."""

    source: bytes | BinaryIO | Frames
    num_frames: int
    size: int
    limits: VideoLimits

    @property
    def source_bytes(self) -> int:
        if isinstance(self.source, bytes):
            return len(self.source)
        if isinstance(self.source, np.ndarray):
            return self.source.nbytes
        return self.source.seek(0, io.SEEK_END)

    def run(self) -> Frames:
        """uint8 [num_frames, size, size, 3]. Raises what `read_frames` does."""
        if isinstance(self.source, np.ndarray):
            return np.stack(
                [resize_picture(frame, (self.size, self.size)) for frame in self.source]
            )
        return read_frames(self.source, self.num_frames, size=self.size, limits=self.limits)
