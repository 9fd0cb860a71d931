"""Chat templates that tests share, a model that has none, and the ids that transformers makes."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from dycoke_trt.bench.make_checkpoint import CHAT_TEMPLATE as PUBLISHED
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.export.chat_template import ChatTemplate
from transformers import AutoTokenizer

QUESTION = "What's in the <b>video</b> & why?"

SPECIAL = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def turn(body: str, end: str = "<|im_end|>\n", video: str = "<video>\n") -> str:
    """A template with `body` where a text part stands."""
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
        "{% if c['type'] == 'video' %}"
        + video
        + "{% elif c['type'] == 'text' %}"
        + body
        + "{% endif %}"
        "{% endfor %}" + end + "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


TEXT = "{{ c['text'] }}"

OURS = {
    "published": PUBLISHED,
    "demo": (MODEL_DIR / "chat_template.jinja").read_text(),
    "llava next": ChatTemplate().text,
    "generation": turn("{% generation %}{% set x = 1 %}" + TEXT + "{% endgeneration %}{{ x }}"),
    "generation, trimmed": turn("{%- generation -%} " + TEXT + " {%- endgeneration -%}"),
    "break": turn(TEXT + "{% break %}"),
    "continue": turn("{% if not c['text'] %}{% continue %}{% endif %}" + TEXT),
    "eos": turn(TEXT, end="{{ eos_token }}\n"),
    "bos": "{{ bos_token }}" + turn(TEXT),
    "absent token": "{% if unk_token is defined %}!{% endif %}" + turn(TEXT),
    "tojson": "{{ messages[0] | tojson(indent=2) }}" + turn("{{ c['text'] | tojson }}"),
    "tools": "{% if tools or documents %}!{% endif %}" + turn(TEXT),
    "namespace": "{% set n = namespace(i=0) %}" + turn("{% set n.i = n.i + 1 %}{{ n.i }}" + TEXT),
    "macro": "{% macro say(t) %}[{{ t }}]{% endmacro %}" + turn("{{ say(c['text']) }}"),
    "indented": "  {% if true %}\n    {{ messages | length }}\n  {% endif %}\n" + turn(TEXT),
    "raises": "{{ raise_exception('no ' ~ messages[0].role) }}",
    "no such filter": "{{ messages | nothing }}",
    "not safe": "{{ messages.__class__.__mro__ }}",
}


def transformers_ids(model: Path, text: str, visual_tokens: int, base: int) -> list[int]:
    """The processor's: the rendered chat with one video token per visual one, tokenised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    prompt = tokenizer.apply_chat_template(
        chat, chat_template=text, tokenize=False, add_generation_prompt=True
    )
    assert prompt.count("<video>") == 1
    ids = tokenizer(prompt.replace("<video>", "<video>" * visual_tokens))["input_ids"]
    video = tokenizer.convert_tokens_to_ids("<video>")
    assert ids.count(video) == visual_tokens
    first = ids.index(video)
    return [base + at - first if token == video else token for at, token in enumerate(ids)]


def model_without_template(folder: Path) -> Path:
    """A copy of the demo checkpoint below `folder`."""
    directory = folder / "model"
    shutil.copytree(MODEL_DIR, directory)
    (directory / "chat_template.jinja").unlink()
    return directory


def edit(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file, which may be new."""
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**old, **values}))
