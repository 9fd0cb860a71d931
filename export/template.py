"""The chat template, rendered once at export into the text around a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..bundle.manifest import Template
from ..core.errors import DyCokeError

# What the LLaVA-NeXT code puts around a video and a question (its conversation "qwen_1_5"), for
# checkpoints that carry no template.
_LLAVA_NEXT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QUESTION = "the-question-stands-here"
_VIDEO = "<video>"


def render_template(chat_template: str | None, tokenizer_json: Path) -> Template:
    """Splits the rendered template at the video and at the question.

    chat_template: Jinja text, or None for LLaVA-NeXT's conversation. tokenizer_json: counts the
    tokens before the video. Raises DyCokeError for a template that has not one place for each.
    """
    from tokenizers import Tokenizer

    with_video = _render(chat_template or _LLAVA_NEXT, [{"type": "video"}, _text()])
    alone = _render(chat_template or _LLAVA_NEXT, [_text()])
    prefix, _, rest = with_video.partition(_VIDEO)
    middle, _, suffix = rest.partition(_QUESTION)
    text_prefix, _, text_suffix = alone.partition(_QUESTION)
    once = with_video.count(_VIDEO) == with_video.count(_QUESTION) == alone.count(_QUESTION) == 1
    if not once or suffix != text_suffix:
        raise DyCokeError(
            f"the chat template renders a video and a question as {with_video!r} and a question "
            f"alone as {alone!r}; supported: one {_VIDEO}, then the question, the same ending"
        )
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    span_start = len(tokenizer.encode(prefix, add_special_tokens=False).ids)
    return Template(
        prefix=prefix, middle=middle, suffix=suffix, text_prefix=text_prefix, span_start=span_start
    )


def _text() -> dict[str, str]:
    return {"type": "text", "text": _QUESTION}


def _render(chat_template: str, content: list[dict[str, str]]) -> str:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> Any:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(chat_template).render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True
        )
    except TemplateError as error:
        raise DyCokeError(f"the chat template cannot be rendered: {error}") from None
