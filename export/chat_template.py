"""The chat template of a checkpoint: where it lies, and what it renders, as in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.json_file import read_json
from ..core.errors import DyCokeError
from .model_config import SourceKind

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

# The conversation "qwen_1_5" of the LLaVA-NeXT code, which takes it whatever the tokenizer says.
_LLAVA_NEXT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# In the order of transformers' processors. They know no tokenizer_config.json: a template there is
# the tokenizer's, and is taken if it can write a video.
_FILES = (
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer_config.json",
)
_SPECIAL = [f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
_QWEN2 = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatTemplate:
    """text: Jinja. origin: what errors name. video: what it writes for a video. special: the
    tokenizer's special tokens by the names under which templates know them."""

    text: str = _LLAVA_NEXT
    origin: str = "LLaVA-NeXT's conversation"
    video: str = "<video>"
    special: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for an answer to `messages`, by transformers' own renderer where it is there.

        Raises DyCokeError, one line, for whatever goes wrong in the template, and for one that
        writes the time: a bundle's prompt is rendered once.
        """
        now: list[str] = []

        def clock(pattern: str) -> str:
            now.append(pattern)
            return datetime.now().strftime(pattern)

        variables = {"messages": list(messages), "add_generation_prompt": True, **self.special}
        try:
            template = environment(clock).from_string(self.text)
            text = template.render(tools=None, documents=None, **variables)
            if renderer := _transformers():
                (text,), _ = renderer(
                    [list(messages)],
                    chat_template=self.text,
                    add_generation_prompt=True,
                    **self.special,
                )
        except Exception as error:  # a template is foreign code: it may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DyCokeError(f"{self.origin}: cannot be rendered ({reason})") from None
        if now:
            raise DyCokeError(
                f"{self.origin}: writes the time of the request (strftime_now({now[0]!r})), which "
                "is not supported: a bundle's prompt is rendered once, at export; write a date "
                "into the template, or leave it out"
            )
        return text


def read_chat_template(directory: Path, kind: SourceKind) -> ChatTemplate:
    """The template that transformers' processor would take; LLaVA-NeXT's for its checkpoints.

    Raises DyCokeError for a Hugging Face checkpoint without one.
    """
    special = _special_tokens(directory)
    if kind == "lmms":
        return ChatTemplate(special=special)
    for name in _FILES:
        path = directory / name
        if not path.is_file():
            continue
        if path.suffix == ".jinja":
            text: str | None = path.read_text(encoding="utf-8")
        else:
            text = _default(read_json(path).get("chat_template"))
        if text is not None:
            return ChatTemplate(text, str(path), _video_token(directory), special)
    raise DyCokeError(
        f"{directory}: holds no chat template (chat_template.jinja, chat_template.json); copy it "
        "from the model that this one was trained from"
    )


def environment(
    clock: Callable[[str], str] = lambda pattern: datetime.now().strftime(pattern),
) -> ImmutableSandboxedEnvironment:
    """transformers' Jinja environment for chat templates, without transformers.

    As in its utils/chat_template_utils.py: sandboxed, blocks trimmed, loop controls, a tojson that
    escapes no HTML, `raise_exception`, `strftime_now` (here `clock`), and {% generation %}.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block that marks an assistant's words in training; rendered as what it holds."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A scope of its own, as a macro has: what is set inside ends with the block.
            return nodes.CallBlock(self.call_method("text"), [], [], body, lineno=line)

        def text(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "strftime_now": clock}
    return made


def _transformers() -> Callable[..., Any] | None:
    try:
        from transformers.utils.chat_template_utils import render_jinja_template
    except ImportError:
        return None
    return render_jinja_template


def _default(value: Any) -> str | None:
    """A template is a text, or several by name, of which `default` counts."""
    if isinstance(value, list):
        value = {part.get("name"): part.get("template") for part in value if isinstance(part, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None


def _video_token(directory: Path) -> str:
    """As LlavaOnevisionProcessor: the tokenizer's own, then the processor's."""
    for name in ("tokenizer_config.json", "processor_config.json"):
        path = directory / name
        values = read_json(path) if path.is_file() else {}
        extra = values.get("extra_special_tokens")
        sources = (values, extra) if isinstance(extra, dict) else (values,)
        for source in sources:
            if token := _content(source.get("video_token")):
                return token
    return "<video>"


def _special_tokens(directory: Path) -> dict[str, str]:
    """What AutoTokenizer(...).special_tokens_map holds: bos_token, eos_token, ..."""
    values: dict[str, Any] = dict(_QWEN2)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        given = read_json(path) if path.is_file() else {}
        values |= {key: given[key] for key in _SPECIAL if key in given}
    return {key: token for key, value in values.items() if (token := _content(value))}


def _content(token: Any) -> str | None:
    """A token is a text, or an object that holds it beside its flags."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None
