"""Finds words in a sequence that grows: stop words in text, stop sequences in tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

Symbol = TypeVar("Symbol", bound=Hashable)


class WordMatcher(Generic[Symbol]):
    """Which of many words ends where a sequence ends, in constant time per symbol.

    A trie of all words whose nodes know the longest other beginning of a word that ends like them
    (Aho and Corasick, 1975), so that neither the number of words nor their length slows a step
    that other requests share. Raises ValueError for an empty word.
    """

    def __init__(self, words: Iterable[Sequence[Symbol]]) -> None:
        self._next: list[dict[Symbol, int]] = [{}]
        self._depth, self._match = [0], [0]
        for word in words:
            self._add(word)
        self._link()
        self._node = 0

    @property
    def held(self) -> int:
        """Length of the longest end of the sequence that begins a word, 0 if none does."""
        return self._depth[self._node]

    def push(self, symbol: Symbol) -> int:
        """Appends a symbol; returns the length of the longest word that ends with it, or 0."""
        self._node = self._step(self._node, symbol)
        return self._match[self._node]

    def _step(self, node: int, symbol: Symbol) -> int:
        while node and symbol not in self._next[node]:
            node = self._shorter[node]
        return self._next[node].get(symbol, 0)

    def _add(self, word: Sequence[Symbol]) -> None:
        if not word:
            raise ValueError("an empty word ends everywhere")
        node = 0
        for symbol in word:
            if symbol not in self._next[node]:
                self._next[node][symbol] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[node] + 1)
                self._match.append(0)
            node = self._next[node][symbol]
        self._match[node] = len(word)

    def _link(self) -> None:
        """Breadth first: a node's shorter end is known before those of its children."""
        self._shorter = [0] * len(self._next)
        waiting = deque(self._next[0].values())
        while waiting:
            node = waiting.popleft()
            for symbol, child in self._next[node].items():
                self._shorter[child] = self._step(self._shorter[node], symbol)
                self._match[child] = self._match[child] or self._match[self._shorter[child]]
                waiting.append(child)
