"""All frames of a stream, one after the other: what every other way is measured by."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from .container import decoder_pixels
from .index import packets
from .limits import Deadline, VideoLimits

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_LARGE = 4096 * 2304  # pixels; of larger pictures a decoder with threads holds too many at once


def prepare_decoder(stream: VideoStream, limits: VideoLimits) -> None:
    """Before the first packet: threads, and the bound that holds whatever a header says."""
    context = stream.codec_context
    context.options = {**context.options, "max_pixels": str(decoder_pixels(limits))}
    if context.width * context.height > _LARGE:
        context.thread_count = 1
    else:
        context.thread_type = "AUTO"


def decode_all(
    container: InputContainer, stream: VideoStream, limits: VideoLimits, deadline: Deadline
) -> Iterator[VideoFrame]:
    """The frames that play, in order; packets that cannot be decoded are left out, as by ffmpeg.

    Raises DyCokeError for a frame that is larger than allowed, and when the time is over.
    """
    import av

    prepare_decoder(stream, limits)
    for packet in chain(packets(container, stream), [None]):  # None: what the decoder still holds
        deadline.check()
        size_known = stream.codec_context.width > 0
        try:
            frames = stream.decode(packet)
        except av.error.FFmpegError:
            _refuse_large(stream, size_known, limits)
            continue
        while frames:
            yield frames.pop(0)  # not kept here while the next one is decoded


def _refuse_large(stream: VideoStream, size_known: bool, limits: VideoLimits) -> None:
    """Whether a packet failed because its picture is too large. Decoders leave their size as it is
    in the packet or, where a size was known before, set it to zero."""
    context = stream.codec_context
    limits.check("max_pixels", context.width * context.height)
    if size_known and context.width == 0:
        limits.refuse("max_pixels", "more")
