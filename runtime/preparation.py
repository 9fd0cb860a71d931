"""A question and a video as they arrive to the tensors that the vision and the LLM step take."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Manifest
from ..core.errors import DyCokeError, UnavailableError
from .capacity import Capacity
from .limits import RequestLimits
from .prompt import PromptBuilder, read_text
from .protocol import DEFAULT_FRAMES, DEFAULT_MAX_TOKENS
from .stages import DECODE_VIDEO, PREPROCESS
from .stop_words import pack_words, read_stop_words, stop_sequences
from .video.limits import VideoLimits
from .video.work import Frames, VideoWork

Arrays = dict[str, NDArray[np.generic]]


class Preparation:
    """What preprocessing does for one bundle. capacity: what the LLM step can hold, where known."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        limits: VideoLimits | None = None,
        *,
        requests: RequestLimits | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        self._requests = requests or RequestLimits()
        self.prompts = PromptBuilder(bundle, manifest, self._requests.max_question_bytes)
        self._manifest = manifest
        self._limits = limits or VideoLimits()
        self._capacity = capacity

    def __call__(
        self,
        question: object,
        *,
        video: NDArray[np.uint8] | None = None,
        file: object = None,
        num_frames: int | None = None,
        max_tokens: int | None = None,
        stop_words: Sequence[object] = (),
        text_only: bool = False,
        make_frames: Callable[[VideoWork], Frames] = VideoWork.run,
    ) -> Arrays:
        """Tensors by their names in runtime/protocol.py, batch dimension included.

        video: uint8 [F, H, W, 3]; file: an encoded video or a base64 data: URI of one. Nothing is
        ever read from a path or an address. make_frames: reads and resizes, here or elsewhere.
        Raises DyCokeError that begins with the field's name; what can be refused without the video
        is refused before it is decoded.
        """
        text = read_text("text_input", question)
        count = self._count_frames(video, file, num_frames, text_only=text_only)
        visual = self._manifest.visual_tokens(count) if count else 0
        length = self._length(max_tokens)
        words = stop_sequences(self.prompts.tokenizer, read_stop_words(stop_words, self._requests))
        try:
            with PREPROCESS:
                ids = self.prompts.build(text, visual)
        except DyCokeError as error:
            raise DyCokeError(f"text_input: {error}") from None
        if self._capacity is not None:
            self._capacity.check(len(ids), length)
        end, *more_ends = self._manifest.end_ids
        arrays: Arrays = {
            "input_ids": np.array([ids], np.int32),
            "input_lengths": np.array([[len(ids)]], np.int32),
            "request_output_len": np.array([[length]], np.int32),
            "end_id": np.array([[end]], np.int32),
            "pad_id": np.array([[self._manifest.pad_id]], np.int32),
            "stop_words_list": pack_words(words + [[token] for token in more_ends]),
        }
        if count:
            if video is not None:
                frames = self._raw_frames(video, make_frames)
            else:
                frames = self._file_frames(file, count, make_frames)
            arrays["frames"] = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)[None])
            arrays["prompt_vocab_size"] = np.array([[visual]], np.int32)
        return arrays

    def _length(self, max_tokens: int | None) -> int:
        if max_tokens is None:
            return min(DEFAULT_MAX_TOKENS, self._requests.max_tokens)
        if max_tokens < 1:
            raise DyCokeError(
                f"max_tokens: {max_tokens} is not allowed; allowed: an integer from 1 to "
                f"{self._requests.max_tokens}"
            )
        self._requests.check("max_tokens", "max_tokens", max_tokens, "tokens")
        return max_tokens

    def _count_frames(
        self,
        video: NDArray[np.uint8] | None,
        file: object,
        num_frames: int | None,
        *,
        text_only: bool,
    ) -> int:
        """How many frames there will be, 0 for text alone; the video itself is not looked into."""
        if video is not None and file is not None:
            raise DyCokeError(
                "video_bytes_input and video_file_input are two videos; send exactly one"
            )
        if text_only and (video is not None or file is not None):
            raise DyCokeError("text_only: there is a video; leave one of the two out")
        if video is not None:
            if num_frames is not None:
                raise DyCokeError(
                    "num_frames: has no effect on video_bytes_input; it is for video_file_input"
                )
            if video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
                raise DyCokeError(
                    f"video_bytes_input: shape {list(video.shape)} is not allowed; allowed: "
                    "[F, H, W, 3], at least one pixel"
                )
            return self._allowed("video_bytes_input", len(video))
        if file is not None:
            count = min(DEFAULT_FRAMES, self._manifest.vision.max_frames)
            return self._allowed("num_frames", count if num_frames is None else num_frames)
        if not text_only:
            raise DyCokeError(
                "video_bytes_input or video_file_input is missing: the ensemble takes exactly one "
                "video; for text alone use the model dycoke_bls"
            )
        if num_frames is not None:
            raise DyCokeError("num_frames: has no effect without video_file_input")
        return 0

    def _allowed(self, name: str, frames: int) -> int:
        try:
            self._manifest.visual_tokens(frames)
        except DyCokeError as error:
            raise DyCokeError(f"{name}: {error}") from None
        return frames

    def _raw_frames(self, video: Frames, make_frames: Callable[[VideoWork], Frames]) -> Frames:
        try:
            self._limits.check("max_pixels", video.shape[1] * video.shape[2])
        except DyCokeError as error:
            raise DyCokeError(f"video_bytes_input: {error}") from None
        size = self._manifest.vision.image_size
        if video.shape[1:3] == (size, size):
            return video
        with PREPROCESS:
            return make_frames(VideoWork(video, len(video), size, self._limits))

    def _file_frames(
        self, file: object, num_frames: int, make_frames: Callable[[VideoWork], Frames]
    ) -> Frames:
        try:
            if not isinstance(file, bytes):
                raise DyCokeError("no bytes; send the encoded file")
            if file.startswith(b"data:"):
                file = _data_uri(file)
            size = self._manifest.vision.image_size
            with DECODE_VIDEO:
                return make_frames(VideoWork(file, num_frames, size, self._limits))
        except UnavailableError:
            raise
        except DyCokeError as error:
            raise DyCokeError(f"video_file_input: {error}") from None


def _data_uri(uri: bytes) -> bytes:
    """The bytes of data:[type];base64,... (a JSON request cannot carry bytes as they are)."""
    head, comma, body = uri.partition(b",")
    if not comma or not head.endswith(b";base64"):
        raise DyCokeError("a data: URI; allowed: data:video/...;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise DyCokeError(f"a data: URI whose base64 is broken ({error})") from None
