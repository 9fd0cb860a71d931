"""The sampled frames by seeking: from the keyframe before each, decode forward to it, no further.

What is taken this way must be what decoding everything gives. So nothing is believed: where a seek
landed is looked up in the packet index, and every frame that comes out is compared with the index's
order. `Inexact` says that they differ, and the caller decodes everything.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import chain, islice, takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .index import PacketIndex, packets
from .limits import Deadline, VideoLimits
from .pixels import PictureMaker
from .whole import prepare_decoder

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_COMPARED = 32  # frames at the beginning and at the end that are compared one by one
_STRETCHES = 16  # damaged ones that are decoded to count their frames
_ALL = -(1 << 63)  # before any time
_INTRA = (0, 1)  # kinds of picture: not said, I
# Decoders that leave out pictures which no other refers to, and give the others unchanged.
_SKIPPERS = {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"}


class Inexact(Exception):  # noqa: N818 - an outcome, no error
    """Seeking does not give what decoding everything does, and why."""


class Seeker:
    """Pictures of a stream's frames by their times, in ascending order.

    `playing`: the times of all frames that play. The index's prediction is corrected where decoders
    differ from it most: at the beginning, at the end, and where packets are marked as damaged.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        index: PacketIndex,
        make: PictureMaker,
        limits: VideoLimits,
        deadline: Deadline,
    ) -> None:
        if not index.orderly:
            raise Inexact("packets without a time of their own")
        prepare_decoder(stream, limits)
        self._container, self._stream, self._index = container, stream, index
        self._make = make
        self._skips = stream.codec_context.name in _SKIPPERS
        self._deadline = deadline
        self._frames: Iterator[tuple[int, VideoFrame]] = iter(())  # their times too
        self._fed: int | None = None  # packets of the file up to the one fed last; None: not begun
        self._wanted = _ALL  # frames before this time are not needed
        self._rank = 0  # of the next frame among those that play
        self._kept: dict[int, NDArray[np.uint8]] = {}  # pictures of the first and last frame
        self.playing = index.playing
        self._check_beginning()
        self._check_damage()
        self._check_end()

    def picture(self, pts: int) -> NDArray[np.uint8]:
        """Of the frame shown at `pts`, one of `playing`; times ascend from call to call."""
        if pts in self._kept:
            return self._kept[pts]
        self._wanted = pts
        start = self._index.start_of(pts)
        if self._fed is None or self._fed < start:
            self._start(start)
        for time, frame in self._frames:
            rank = bisect_left(self.playing, time)
            if self.playing[rank : rank + 1] != [time]:
                raise Inexact(f"a frame at {time} that no packet announces")
            if rank < self._rank or (rank > self._rank and not self._skips):
                raise Inexact(f"frame {rank} comes in place of frame {self._rank}")
            if frame.is_corrupt:
                raise Inexact(f"the frame at {time} is damaged")
            self._rank = rank + 1
            if time == pts:
                return self._make(frame)
            if time > pts:
                break
            del frame  # or it would stay until the next one is decoded
        raise Inexact(f"no frame comes at {pts}")

    def _check_beginning(self) -> None:
        """Where a stream was cut, the first frames lack their references: they are no frames."""
        self._start(0)
        times: list[int] = []
        for time, frame in islice(self._frames, _COMPARED):
            if not times:
                self._kept[time] = self._make(frame)
            times.append(time)
            del frame
        if not times:
            raise Inexact("no frame comes from the beginning")
        del self.playing[: bisect_left(self.playing, times[0])]
        if times != self.playing[:_COMPARED]:
            raise Inexact("the first frames are not those of the packets")
        self._fed = None

    def _check_damage(self) -> None:
        """Frames that are lost in stretches between keyframes with damaged packets."""
        keys = [0, *self._index.keys]
        stretches = sorted({bisect_right(keys, ordinal) - 1 for ordinal in self._index.doubtful})
        if len(stretches) > _STRETCHES:
            raise Inexact(f"{len(stretches)} damaged stretches")
        for i in stretches:
            self._wanted = _ALL
            self._start(keys[i])
            begin = self._index.pts[keys[i]] if keys[i] else self.playing[0]
            end = self._index.pts[keys[i + 1]] if i + 1 < len(keys) else self.playing[-1] + 1
            times = list(takewhile(end.__gt__, (time for time, _ in self._frames)))
            low, high = bisect_left(self.playing, begin), bisect_left(self.playing, end)
            if not set(times) <= set(self.playing[low:high]) or times != sorted(times):
                raise Inexact("frames in a damaged stretch that no packet announces")
            self.playing[low:high] = times
            self._fed = None
            if not self.playing:
                raise Inexact("damage leaves no frame")

    def _check_end(self) -> None:
        """The last packets of a file that was cut give no frame."""
        tail = self.playing[-_COMPARED:]
        self._wanted = tail[0]
        self._start(self._index.start_of(self._wanted))
        times: list[int] = []
        for time, frame in self._frames:
            if time >= tail[0]:
                times.append(time)
            if time == tail[-1] and not frame.is_corrupt:
                self._kept[time] = self._make(frame)
            del frame
        if not times or times != tail[: len(times)]:
            raise Inexact("the last frames are not those of the packets")
        del self.playing[len(self.playing) - len(tail) + len(times) :]
        self._fed = None

    def _start(self, ordinal: int) -> None:
        """Goes to a packet; the frames shown at its time or later are in `_frames` then."""
        arriving = self._land(ordinal)
        self._fed = ordinal
        first = self._index.pts[ordinal] if ordinal else None
        self._rank = 0 if first is None else bisect_left(self.playing, first)
        self._frames = self._decode(arriving, first)

    def _land(self, ordinal: int) -> Iterator[Packet[VideoStream] | None]:
        """Packets from there to the end, and None. Where a seek leads is the container's choice:
        packets that arrive are looked up, and the next try aims earlier if they lie behind."""
        ordinals = self._index.ordinals
        back = 0
        while True:
            aim = max(ordinal - back, 0)
            if aim > 0 or back == 0:
                self._container.seek(self._index.dts[aim], stream=self._stream)
            else:
                self._container.seek(0, unsupported_byte_offset=True)
            arriving = packets(self._container, self._stream)
            for packet in arriving:
                self._deadline.check()
                here = -1 if packet.pts is None else ordinals.get(packet.pts, -1)
                if here == ordinal:
                    return chain([packet], arriving, [None])
                if here > ordinal:
                    break
            if aim == 0 and back > 0:
                raise Inexact(f"no seek leads to packet {ordinal}")
            back = max(4 * back, 16)

    def _decode(
        self, arriving: Iterator[Packet[VideoStream] | None], first: int | None
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Frames shown at `first`, the time of the keyframe that leads, or later; None: all."""
        import av

        context = self._stream.codec_context
        for packet in arriving:
            self._deadline.check()
            if self._skips:
                unneeded = packet is not None and (packet.pts or self._wanted) < self._wanted
                context.skip_frame = "NONREF" if unneeded else "DEFAULT"
            try:
                frames = self._stream.decode(packet)
            except av.error.FFmpegError as error:
                raise Inexact(f"a packet cannot be decoded ({error.strerror})") from None
            self._fed = (self._fed or 0) + 1
            while frames:
                time, kind = frames[0].pts, frames[0].pict_type
                if time is None:
                    raise Inexact("a frame without a time")
                if first is not None and time < first:
                    frames.pop(0)
                    continue  # shown before the keyframe: what it refers to was not decoded
                if time == first and kind not in _INTRA:
                    raise Inexact(f"the packet at {first} is no keyframe")
                yield time, frames.pop(0)
