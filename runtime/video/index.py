"""The packets of a stream: what plays when, read without decoding anything."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...core.errors import DyCokeError
from .limits import Deadline, VideoLimits

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream


@dataclass
class PacketIndex:
    """Packets in the order of the file; times are in the stream's time base.

    `playing` is a prediction: packets are no frames where a decoder has its reasons (references
    that were cut off, pictures that are never shown, two fields of one frame, damage). `orderly`
    says that each packet has a time of its own, without which nothing can be found by its time.
    """

    pts: array[int] = field(default_factory=lambda: array("q"))  # shown at
    dts: array[int] = field(default_factory=lambda: array("q"))  # decoded at; where unknown, pts
    keys: list[int] = field(default_factory=list)  # ordinals of packets to start decoding at
    doubtful: list[int] = field(default_factory=list)  # ordinals of packets marked as damaged
    hidden: set[int] = field(default_factory=set)  # ordinals outside the edit list
    orderly: bool = True

    def __len__(self) -> int:
        return len(self.pts)

    def finish(self) -> None:
        """Derives, from all packets, where each time is and from which keyframe to decode it."""
        self.ordinals = {pts: i for i, pts in enumerate(self.pts)}
        self.playing = sorted(pts for i, pts in enumerate(self.pts) if i not in self.hidden)
        key_times = [self.pts[i] for i in self.keys]
        self.orderly &= len(self.ordinals) == len(self.pts) and key_times == sorted(key_times)
        self._key_times = key_times

    def start_of(self, pts: int) -> int:
        """Ordinal of the last keyframe that is shown at or before `pts`; without one, 0.

        A frame that is shown before the keyframe it follows in the file may need what came before
        that keyframe (an open GOP), one shown after it does not.
        """
        i = bisect_right(self._key_times, pts)
        return self.keys[i - 1] if i else 0


def packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Packets that hold something, up to the end or up to where the file cannot be read further."""
    import av

    with suppress(av.error.FFmpegError):
        for packet in container.demux(stream):
            if packet.size:
                yield packet


def index_packets(
    container: InputContainer, stream: VideoStream, limits: VideoLimits, deadline: Deadline
) -> PacketIndex:
    """Reads the whole file once. Raises DyCokeError for more frames than allowed, for none, and for
    a file that ends before the bytes which its own index names."""
    index = PacketIndex()
    before: int | None = None
    for packet in packets(container, stream):
        ordinal = len(index)
        if ordinal % 1024 == 0:
            deadline.check()
            limits.check("max_frames", ordinal)
        pts, dts = packet.pts, packet.dts
        if pts is None or (dts is not None and before is not None and dts <= before):
            index.orderly = False
        before = before if dts is None else dts
        index.pts.append(ordinal if pts is None else pts)
        index.dts.append(index.pts[-1] if dts is None else dts)
        if packet.is_keyframe:
            index.keys.append(ordinal)
        if packet.is_corrupt:
            index.doubtful.append(ordinal)
        if packet.is_discard:
            index.hidden.add(ordinal)
    limits.check("max_frames", len(index))
    if len(index) == 0:
        raise DyCokeError("holds no frame")
    if len(index.hidden) == len(index):
        raise DyCokeError("plays no frame: its edit list leaves out all of them")
    index.finish()
    return index


def check_complete(container: InputContainer, stream: VideoStream) -> None:
    """Raises DyCokeError if the container's index names bytes behind the end of the file.

    Only MP4's index says so before anything is read; other containers play up to where they end.
    """
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if end > container.size:
        raise DyCokeError(
            f"the file ends at byte {container.size:,}, its index names frames up to byte "
            f"{end:,}; is it complete?"
        )
