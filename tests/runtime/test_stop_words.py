"""Stop words between preprocessing and the LLM step, in TensorRT-LLM's format."""

from __future__ import annotations

import numpy as np
import pytest
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.stop_words import pack_words, unpack_words
from hypothesis import given
from hypothesis import strategies as st


def test_the_format() -> None:
    """All tokens, then the offset after each word, padded with -1."""
    packed = pack_words([[5, 6, 7], [8]])
    assert packed.dtype == np.int32
    assert packed.tolist() == [[[5, 6, 7, 8], [3, 4, -1, -1]]]
    assert pack_words([]).tolist() == [[[0], [-1]]]


@given(st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=5), max_size=6))
def test_words_come_back(words: list[list[int]]) -> None:
    assert unpack_words(pack_words(words)) == tuple(map(tuple, words))


@pytest.mark.parametrize(
    "packed", [[[[1, 2], [3, -1]]], [[[1, 2], [0, -1]]], [[[1, 2], [2, 1]]], [[1, 2]]]
)
def test_broken_offsets_are_refused(packed: list[object]) -> None:
    with pytest.raises(DyCokeError, match="stop_words_list"):
        unpack_words(np.array(packed, np.int32))
