"""The small model's tokenizer: byte-level BPE with Qwen2's rules, trained on the suite's text.

All 256 bytes are tokens, so any text can be encoded; the suite's words become single tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import DyCokeError
from .shapes import TRAIN_SEEDS, questions, scene_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT, START, END, IMAGE, VIDEO = SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<video>",
)

# How Qwen2 cuts text before BPE, as in its tokenizer.json.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MERGED_VOCABULARY = 480  # bytes and merges; enough for every word of the suite
_CORPUS_SCENES = 2_000

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def prompt_prefix() -> str:
    """What stands before the visual tokens."""
    return f"{START}user\n"


def prompt_suffix(question: str) -> str:
    """What stands between the visual tokens and the answer."""
    return f"\n{question}{END}\n{START}assistant\n"


def build_prompt(question: str, visual_tokens: int = 1) -> str:
    """The chat template applied to one video and one question, ready for generation.

    visual_tokens: how often `<video>` is written; plain HF generation wants one per visual token.
    """
    return prompt_prefix() + VIDEO * visual_tokens + prompt_suffix(question)


def train_tokenizer(folder: Path) -> None:
    """Trains on the text of training scenes and writes the Qwen2 tokenizer files to `folder`."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        processors,
        trainers,
    )
    from tokenizers import pre_tokenizers as pre

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(_SPLIT), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_MERGED_VOCABULARY,
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    # After the merges, as in Qwen2: the special ids are the highest.
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [START, END, IMAGE, VIDEO],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": END_OF_TEXT,
        "processor_class": "LlavaOnevisionProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`. Raises DyCokeError in one line where it cannot be read."""
    from transformers import AutoTokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DyCokeError(f"{path} is missing: no tokenizer there")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DyCokeError(f"{path}: not readable ({first})") from None


def _corpus() -> list[str]:
    texts = []
    for seed in TRAIN_SEEDS[:_CORPUS_SCENES]:
        for asked in questions(scene_for(seed)):
            texts.append(prompt_suffix(asked.question) + asked.answer)
    return [text.replace(START, "").replace(END, "") for text in texts]
