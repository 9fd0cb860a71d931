"""The automaton for stop words against the obvious search, and what it costs."""

from __future__ import annotations

import pytest
from dycoke_trt.runtime.stopping import WordMatcher
from dycoke_trt.tests.runtime.tiny import VOCAB
from hypothesis import given
from hypothesis import strategies as st


@given(st.text("ab", max_size=40), st.lists(st.text("abc", min_size=1, max_size=6), max_size=6))
def test_it_finds_what_a_search_finds(text: str, words: list[str]) -> None:
    matcher: WordMatcher[str] = WordMatcher(words)
    for end, character in enumerate(text, 1):
        matched = matcher.push(character)
        assert matched == max((len(w) for w in words if text[:end].endswith(w)), default=0)
        ends = [text[end - size : end] for size in range(end + 1)]
        begun = [len(e) for e in ends if any(w.startswith(e) for w in words)]
        assert matcher.held == max(begun, default=0)


class Counted(int):
    """A token that counts how often it is looked up."""

    lookups = 0

    def __hash__(self) -> int:
        Counted.lookups += 1
        return int.__hash__(self)


def test_the_cost_of_a_token_does_not_grow_with_the_words() -> None:
    costs = []
    for words, length in ((1, 2), (64, 2), (64, 256)):
        # All but the last tokens agree, which is the worst for a search word by word.
        matcher = WordMatcher([[1] * (length - 1) + [2 + word] for word in range(words)])
        Counted.lookups = 0
        for _ in range(1000):
            assert matcher.push(Counted(1)) == 0
        costs.append(Counted.lookups)
    assert max(costs) <= 4 * 1000


def test_an_empty_word_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        WordMatcher([[]])


def test_end_and_stop_tokens(make_client) -> None:
    free = make_client()
    free.submit("r", [1, 2, 3], 12)
    free.engine.run_until_idle()
    answer = free.tokens("r")

    client = make_client()
    client.submit("end", [1, 2, 3], 12, end_ids=frozenset([answer[4]]))
    client.submit("stop", [1, 2, 3], 12, stop=((VOCAB - 1,), tuple(answer[5:8])))
    client.engine.run_until_idle()
    assert client.tokens("end") == answer[: answer.index(answer[4])]
    assert client.finish("end") == "end"
    assert client.finish("stop") == "stop"
    cut = next(i for i in range(len(answer)) if answer[i : i + 3] == answer[5:8])
    assert client.tokens("stop") == answer[:cut]


def test_a_half_stop_sequence_is_delivered_in_the_end(make_client) -> None:
    free = make_client()
    free.submit("r", [4, 5], 6)
    free.engine.run_until_idle()
    answer = free.tokens("r")
    client = make_client()
    client.submit("r", [4, 5], 6, stop=((answer[-1], VOCAB - 1, VOCAB - 2),))
    client.engine.run_until_idle()
    assert client.tokens("r") == answer
    assert client.finish("r") == "length"
