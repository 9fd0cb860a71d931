"""A question and a video as they arrive to the tensors that the vision and the LLM step take."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..bundle.manifest import Manifest
from ..core.errors import DyCokeError
from .preprocess import resize
from .prompt import PromptBuilder
from .protocol import DEFAULT_FRAMES, DEFAULT_MAX_TOKENS
from .stages import DECODE_VIDEO, PREPROCESS
from .video.limits import VideoLimits
from .video.read import read_video

_INT32_MAX = 2**31 - 1
Arrays = dict[str, NDArray[np.generic]]


class Preparation:
    """What preprocessing does for one bundle."""

    def __init__(self, bundle: Path, manifest: Manifest, limits: VideoLimits | None = None) -> None:
        self.prompts = PromptBuilder(bundle, manifest)
        self._manifest = manifest
        self._limits = limits or VideoLimits()

    def __call__(
        self,
        question: bytes,
        *,
        video: NDArray[np.uint8] | None = None,
        file: bytes | None = None,
        num_frames: int | None = None,
        max_tokens: int | None = None,
        stop_words: Sequence[bytes] = (),
        text_only: bool = False,
    ) -> Arrays:
        """Tensors by their names in runtime/protocol.py, batch dimension included.

        video: uint8 [F, H, W, 3]; file: an encoded video or a base64 data: URI of one. Nothing is
        ever read from a path or an address. Raises DyCokeError that begins with the field's name.
        """
        text = _text("text_input", question)
        frames = self._frames(video, file, num_frames, text_only)
        visual = 0 if frames is None else self._manifest.visual_tokens(len(frames))
        try:
            with PREPROCESS:
                ids = self.prompts.build(text, visual)
        except DyCokeError as error:
            raise DyCokeError(f"text_input: {error}") from None
        length = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
        if length < 1:
            raise DyCokeError(
                f"max_tokens: {length} is not allowed; allowed: an integer from 1 to {_INT32_MAX}"
            )
        end, *more_ends = self._manifest.end_ids
        words = self._stop_sequences(stop_words) + [[token] for token in more_ends]
        arrays: Arrays = {
            "input_ids": np.array([ids], np.int32),
            "input_lengths": np.array([[len(ids)]], np.int32),
            "request_output_len": np.array([[length]], np.int32),
            "end_id": np.array([[end]], np.int32),
            "pad_id": np.array([[self._manifest.pad_id]], np.int32),
            "stop_words_list": pack_words(words),
        }
        if frames is not None:
            size = self._manifest.vision.image_size
            with PREPROCESS:
                arrays["frames"] = resize(frames, size)[None].numpy()
            arrays["prompt_vocab_size"] = np.array([[visual]], np.int32)
        return arrays

    def _frames(
        self,
        video: NDArray[np.uint8] | None,
        file: bytes | None,
        num_frames: int | None,
        text_only: bool,
    ) -> torch.Tensor | None:
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
            return self._raw_frames(video)
        if file is not None:
            count = min(DEFAULT_FRAMES, self._manifest.vision.max_frames)
            return self._file_frames(file, count if num_frames is None else num_frames)
        if not text_only:
            raise DyCokeError(
                "video_bytes_input or video_file_input is missing: the ensemble takes exactly one "
                "video; for text alone use the model dycoke_bls"
            )
        if num_frames is not None:
            raise DyCokeError("num_frames: has no effect without video_file_input")
        return None

    def _raw_frames(self, video: NDArray[np.uint8]) -> torch.Tensor:
        if video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
            raise DyCokeError(
                f"video_bytes_input: shape {list(video.shape)} is not allowed; allowed: "
                "[F, H, W, 3], at least one pixel"
            )
        try:
            self._limits.check("max_pixels", video.shape[1] * video.shape[2])
            self._manifest.visual_tokens(len(video))
        except DyCokeError as error:
            raise DyCokeError(f"video_bytes_input: {error}") from None
        return torch.from_numpy(np.ascontiguousarray(video))

    def _file_frames(self, file: bytes, num_frames: int) -> torch.Tensor:
        try:
            self._manifest.visual_tokens(num_frames)
        except DyCokeError as error:
            raise DyCokeError(f"num_frames: {error}") from None
        try:
            if file.startswith(b"data:"):
                file = _data_uri(file)
            size = self._manifest.vision.image_size
            with DECODE_VIDEO:
                return read_video(file, num_frames, size=size, limits=self._limits)
        except DyCokeError as error:
            raise DyCokeError(f"video_file_input: {error}") from None

    def _stop_sequences(self, words: Sequence[bytes]) -> list[list[int]]:
        """Token sequences of stop words; a word after a space is other tokens than at a start."""
        sequences: list[list[int]] = []
        for word in words:
            text = _text("stop_words", word)
            if not text:
                raise DyCokeError("stop_words: an empty stop word is not allowed")
            for form in (text, f" {text}"):
                ids = list(self.prompts.tokenizer.encode(form, add_special_tokens=False).ids)
                if ids not in sequences:
                    sequences.append(ids)
        return sequences


def pack_words(words: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """int32 [1, 2, n]: all tokens end to end, and the offset after each word, padded with -1.

    TensorRT-LLM's format of stop_words_list; no words is one padding column.
    """
    flat = [token for word in words for token in word] or [0]
    offsets = np.full(len(flat), -1, np.int32)
    ends = np.cumsum([len(word) for word in words], dtype=np.int32)
    offsets[: len(ends)] = ends
    return np.array([[flat, offsets.tolist()]], np.int32)


def unpack_words(packed: NDArray[np.int32]) -> tuple[tuple[int, ...], ...]:
    """The words of `pack_words`. Raises DyCokeError for offsets that are none."""
    if packed.ndim != 3 or packed.shape[:2] != (1, 2):
        raise DyCokeError(f"stop_words_list: shape {list(packed.shape)}; allowed: [1, 2, n]")
    flat, offsets = packed[0].tolist()
    words, begin = [], 0
    for end in offsets:
        if end < 0:
            break
        if not begin < end <= len(flat):
            raise DyCokeError(
                f"stop_words_list: offset {end} after {begin}, with {len(flat)} tokens; allowed: "
                "increasing offsets up to their number, then -1"
            )
        words.append(tuple(flat[begin:end]))
        begin = end
    return tuple(words)


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DyCokeError(f"{name}: not UTF-8 (byte {error.start})") from None


def _data_uri(uri: bytes) -> bytes:
    """The bytes of data:[type];base64,... (a JSON request cannot carry bytes as they are)."""
    head, comma, body = uri.partition(b",")
    if not comma or not head.endswith(b";base64"):
        raise DyCokeError("a data: URI; allowed: data:video/...;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise DyCokeError(f"a data: URI whose base64 is broken ({error})") from None
