"""Stop words: read as a client sends them, and packed as TensorRT-LLM takes their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..core.errors import DyCokeError
from .limits import RequestLimits
from .prompt import read_text


def read_stop_words(words: Sequence[object], limits: RequestLimits) -> list[str]:
    """The different ones, in order. Raises DyCokeError that begins with `stop_words`, for too many
    or too long ones before any of them is looked at."""
    limits.check("max_stop_words", "stop_words", len(words), "words")
    for word in words:
        if isinstance(word, bytes):
            limits.check("max_stop_word_bytes", "stop_words", len(word), "bytes in a word")
    texts = list(dict.fromkeys(read_text("stop_words", word) for word in words))
    if "" in texts:
        raise DyCokeError("stop_words: an empty stop word is not allowed")
    return texts


def stop_sequences(tokenizer: Tokenizer, words: Iterable[str]) -> list[list[int]]:
    """The tokens of each word: after a space they are others than at a start."""
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        for form in (word, f" {word}"):
            sequences[tuple(tokenizer.encode(form, add_special_tokens=False).ids)] = None
    return [list(tokens) for tokens in sequences if tokens]


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
