"""Prompts: the chat template around a question, with or without a video, as token ids."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from ..bundle.loading import checked_parts
from ..bundle.manifest import Manifest
from ..bundle.paths import TOKENIZER, TOKENIZER_FILE
from ..core.errors import DyCokeError
from .limits import RequestLimits


def load_tokenizer(bundle: Path) -> Tokenizer:
    """The bundle's tokenizer. Raises DyCokeError for a broken or a changed file."""
    path = bundle / TOKENIZER / TOKENIZER_FILE
    try:
        with checked_parts(bundle, f"{TOKENIZER}/"):
            return Tokenizer.from_file(str(path))
    except DyCokeError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise DyCokeError(f"{path}: not readable ({error}); export again") from None


def read_text(name: str, value: object) -> str:
    """Text of a BYTES tensor. Raises DyCokeError that begins with its name."""
    if not isinstance(value, bytes):
        raise DyCokeError(f"{name}: holds no text; send UTF-8 bytes")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DyCokeError(f"{name}: not UTF-8 (byte {error.start})") from None


class PromptBuilder:
    """Token ids of prompts, and text of answers, for one bundle. most_bytes: of a question."""

    def __init__(
        self, bundle: Path, manifest: Manifest, most_bytes: int = RequestLimits.max_question_bytes
    ) -> None:
        self._most_bytes = most_bytes
        self.tokenizer = load_tokenizer(bundle)
        self._template = manifest.template
        self._base = manifest.visual_token_base
        added = self.tokenizer.get_added_tokens_decoder().values()
        self._special = sorted(token.content for token in added if token.special)

    def build(self, question: str, visual_tokens: int = 0) -> list[int]:
        """Ids of the whole prompt; visual tokens are base, base + 1, ... in one run.

        Raises DyCokeError for an empty or oversized question, or one that spells a special token
        (it would end the user's turn, or stand for another video).
        """
        if not question.strip():
            raise DyCokeError("the question is empty")
        size = len(question.encode("utf-8", "surrogatepass"))
        if size > self._most_bytes:
            raise DyCokeError(
                f"the question has {size} bytes; allowed: up to {self._most_bytes} (the server's "
                "--max-question-bytes)"
            )
        for token in self._special:
            if token in question:
                raise DyCokeError(f"the question holds the special token {token!r}; remove it")
        t = self._template
        if not visual_tokens:
            return self._encode(t.text_prefix + question + t.suffix)
        visual = list(range(self._base, self._base + visual_tokens))
        return self._encode(t.prefix) + visual + self._encode(t.middle + question + t.suffix)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
