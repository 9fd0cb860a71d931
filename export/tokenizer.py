"""The tokenizer's files: from a checkpoint into a bundle, as a tokenizer.json at least."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenizers import Tokenizer

from ..core.errors import DyCokeError

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copies the tokenizer's files into the new directory `target`; returns their names.

    Older checkpoints hold vocab.json and merges.txt alone; tokenizer.json is then made from them.
    Raises DyCokeError where the checkpoint has no tokenizer.
    """
    present = [name for name in _FILES if (source / name).is_file()]
    if not {"tokenizer.json", "vocab.json"} & set(present):
        raise DyCokeError(
            f"{source}: holds no tokenizer (tokenizer.json, or vocab.json and merges.txt); "
            "copy the tokenizer's files there"
        )
    target.mkdir()
    for name in present:
        shutil.copyfile(source / name, target / name)
    if "tokenizer.json" not in present:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(str(target)).save_pretrained(str(target))
    return sorted(path.name for path in target.iterdir())


def open_tokenizer(directory: Path, vocab: int) -> Tokenizer:
    """The tokenizer of a bundle that is being written.

    vocab: rows of the embedding. Raises DyCokeError for a file that cannot be read, for ids that
    would be taken for visual tokens, and for a tokenizer that adds tokens of its own.
    """
    path = directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise DyCokeError(f"{path.name}: cannot be read ({error})") from None
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if last >= vocab:
        raise DyCokeError(
            f"{path.name}: its last token has id {last}, the embedding {vocab} rows; one of the "
            "two is of another model"
        )
    if added := tokenizer.encode("", add_special_tokens=True).tokens:
        raise DyCokeError(
            f"{path.name}: adds {' '.join(added)} to every text, which Qwen2's tokenizer does not; "
            "export with the tokenizer of the model that this one was trained from"
        )
    return tokenizer
