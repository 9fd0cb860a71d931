"""Token ids to text as they arrive, up to a stop word."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from ..core.errors import DyCokeError
from .stopping import WordMatcher


class TextStream:
    """Turns tokens into text deltas that concatenate to the text of all tokens.

    Byte-level BPE may split a character over tokens: incomplete UTF-8 waits for its rest. Text that
    may be the beginning of a stop word waits too; from a stop word on nothing is delivered, and
    `stopped` says so. Stop words are compared as text: the same word has many tokenisations.

    Not tokenizers' DecodeStream (0.23): it has no end, so an answer that is cut within a character
    loses it, and it does not say whether something is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stop_words: Sequence[str] = ()) -> None:
        if "" in stop_words:
            raise DyCokeError("an empty stop word is not allowed")
        self.stopped = False
        self._tokenizer = tokenizer
        self._matcher = WordMatcher[str](stop_words) if stop_words else None
        self._ids: list[int] = []  # since the last point where the text was complete
        self._given = 0  # characters of their text that were passed on
        self._held = ""  # text that may begin a stop word

    @property
    def pending(self) -> bool:
        """Whether something was pushed that is not delivered yet."""
        return bool(self._ids or self._held)

    def push(self, ids: list[int]) -> str:
        """New text that nothing to come can change."""
        self._ids += ids
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith("\ufffd"):
            # Only the last one can be the beginning of a character that is still to come.
            return self._before_stop_word(self._new(text[:-1]))
        delta = self._new(text)
        self._ids, self._given = [], 0
        return self._before_stop_word(delta)

    def flush(self) -> str:
        """What is left at the end, an incomplete character replaced."""
        delta = self._new(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        self._ids, self._given = [], 0
        delta = self._before_stop_word(delta) + self._held
        self._held = ""
        return delta

    def _new(self, text: str) -> str:
        delta, self._given = text[self._given :], max(self._given, len(text))
        return delta

    def _before_stop_word(self, delta: str) -> str:
        if self.stopped:
            return ""
        if self._matcher is None:
            return delta
        before, self._held = len(self._held), self._held + delta
        for i, character in enumerate(delta):
            if matched := self._matcher.push(character):
                self.stopped = True
                text, self._held = self._held[: before + i + 1 - matched], ""
                return text
        ready = len(self._held) - self._matcher.held
        text, self._held = self._held[:ready], self._held[ready:]
        return text


class TextStreams:
    """Text of several streams at once, told apart by a name; state only within a character.

    Streams may say which response is their first and which their last, or neither, as the
    TensorRT-LLM backend does: what is left of a stream that ended within a character then is the
    beginning of a character that never came, and goes when newer streams need the place.
    """

    def __init__(self, tokenizer: Tokenizer, most: int = 4096) -> None:
        self._tokenizer = tokenizer
        self._most = most
        self._pending: dict[str, TextStream] = {}  # the oldest first

    def push(self, name: str, ids: list[int], *, first: bool = False, final: bool = False) -> str:
        """New text of stream `name` that nothing to come can change."""
        stream = self._pending.pop(name, None)
        if stream is None or first:
            stream = TextStream(self._tokenizer)
        text = stream.push(ids)
        if final:
            return text + stream.flush()
        if stream.pending:
            self._pending[name] = stream
            if len(self._pending) > self._most:
                del self._pending[next(iter(self._pending))]
        return text
