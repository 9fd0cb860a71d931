"""Streamed text: deltas concatenate to the text of all tokens, whatever bytes they hold."""

from __future__ import annotations

import pytest
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.detokenize import TextStream, TextStreams
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level: one token per byte, and a special one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    return tokenizer


def streamed(tokenizer: Tokenizer, ids: list[int], sizes: list[int]) -> list[str]:
    stream, deltas, at = TextStream(tokenizer), [], 0
    for size in [*sizes, len(ids)]:
        deltas.append(stream.push(ids[at : at + size]))
        at += size
    return [*deltas, stream.flush()]


@given(st.lists(st.integers(0, 256), max_size=40), st.lists(st.integers(0, 3), max_size=60))
@example([0xF0, 0x9F, 0x98], [1, 1, 1])
def test_deltas_concatenate_to_the_text(
    tokenizer: Tokenizer, ids: list[int], sizes: list[int]
) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(streamed(tokenizer, ids, sizes)) == whole


@given(st.text(max_size=20))
def test_whole_characters_arrive_as_soon_as_they_are_complete(
    tokenizer: Tokenizer, text: str
) -> None:
    deltas: list[str] = []
    stream = TextStream(tokenizer)
    for character in text:
        ids = tokenizer.encode(character).ids
        assert all(stream.push([i]) == "" for i in ids[:-1])
        deltas.append(stream.push(ids[-1:]))
    assert stream.flush() in ("", "\ufffd")
    if "\ufffd" not in text:
        assert deltas == list(text)


@given(
    text=st.text("abc", max_size=30),
    words=st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    sizes=st.lists(st.integers(0, 3), max_size=40),
)
def test_stop_words_end_the_text(
    tokenizer: Tokenizer, text: str, words: list[str], sizes: list[int]
) -> None:
    cuts = [(text.find(word) + len(word), text.find(word)) for word in words if word in text]
    stream, deltas, at = TextStream(tokenizer, words), [], 0
    ids = tokenizer.encode(text).ids
    for size in [*sizes, len(ids)]:
        deltas.append(stream.push(ids[at : at + size]))
        at += size
    deltas.append(stream.flush())
    assert stream.stopped == bool(cuts)
    assert "".join(deltas) == (text[: min(cuts)[1]] if cuts else text)


def test_a_stop_word_may_span_tokens_and_begin_anywhere(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ["STOP"])
    deltas = [stream.push(tokenizer.encode(c).ids) for c in "aSTaSTOPb"]
    assert deltas == ["a", "", "", "STa", "", "", "", "", ""]
    assert stream.flush() == ""
    with pytest.raises(DyCokeError, match="empty stop word"):
        TextStream(tokenizer, [""])


def test_the_end_that_a_decode_stream_loses(tokenizer: Tokenizer) -> None:
    """Why TextStream is not tokenizers' own; should this fail, look whether it can be now."""
    ids = tokenizer.encode("a😀").ids[:-1]
    theirs = DecodeStream(skip_special_tokens=True)
    assert [theirs.step(tokenizer, i) for i in ids] == ["a", None, None, None]
    assert not hasattr(theirs, "flush")
    assert "".join(streamed(tokenizer, ids, [1] * 4)) == "a\ufffd" == tokenizer.decode(ids)


def test_pending_says_whether_text_is_held(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ["stop"])
    character = tokenizer.encode("é").ids
    pending = [stream.pending]
    for ids in (character[:1], character[1:], tokenizer.encode("st").ids):
        stream.push(ids)
        pending.append(stream.pending)
    assert pending == [False, True, False, True]
    assert stream.flush() == "st"
    assert stream.pending is False


def test_streams_without_marks_keep_only_incomplete_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aé", add_special_tokens=False).ids
    streams = TextStreams(tokenizer, most=3)
    texts = dict.fromkeys("xyz", "")
    for token in ids:  # three streams at once, byte by byte
        for name in texts:
            texts[name] += streams.push(name, [token])
    assert texts == dict.fromkeys("xyz", "aé")
    # Streams that end within a character and never say so do not pile up.
    for number in range(10):
        assert streams.push(str(number), ids[:2]) == "a"
    assert streams.push("0", ids[2:]) == ""  # forgotten: a byte that continues nothing
    assert streams.push("9", ids[2:]) == "é"
    assert streams.push("9", ids[:2]) == "a"
    assert streams.push("9", ids, first=True, final=True) == "aé"
