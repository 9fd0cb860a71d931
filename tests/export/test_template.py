"""The template cut at video and question: ids as transformers makes them, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dycoke_trt.bench.make_checkpoint import CHAT_TEMPLATE as PUBLISHED
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.export.chat_template import ChatTemplate, read_chat_template
from dycoke_trt.export.template import render_template
from dycoke_trt.tests.export.chats import OURS, QUESTION, TEXT, edit, transformers_ids, turn
from tokenizers import AddedToken, Tokenizer

REFUSED = {
    "a text model's": (
        "{% for m in messages %}{{ m['role'] + '\n' + m['content'] }}{% endfor %}",
        "text model .it takes a text where a video and a question are a list",
    ),
    "a text model's that writes the list": (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "text model .it writes no <video>",
    ),
    "a text model's that strips": (
        "{% for m in messages %}{{ m.content.strip() }}{% endfor %}",
        "text model .it takes a text",
    ),
    "the parts' texts alone": (turn(TEXT, video=""), "text model .it writes no <video>"),
    "the time": ("{{ strftime_now('%Y') }}" + turn(TEXT), r"strftime_now\('%Y'\).*not supported"),
    "the time, in a macro": (
        "{% macro now() %}{{ strftime_now('%d %b') }}{% endmacro %}{{ now() }}" + turn(TEXT),
        "writes the time of the request",
    ),
    "an exception": (turn("{{ raise_exception('no video') }}"), "cannot be rendered .no video"),
    "a type error": (turn("{{ 1 + c['text'] }}"), "cannot be rendered .unsupported operand"),
    "an unknown tag": (turn("{% video %}"), "cannot be rendered .Encountered unknown tag"),
    "a division": (turn("{{ 1 / 0 }}"), "cannot be rendered .division by zero"),
    "a way out": (turn("{{ c.__class__.__mro__[1] }}"), "cannot be rendered .access to attribute"),
    "two videos": (turn(TEXT, video="<video><video>"), "supported: one <video>"),
    "question twice": (turn(TEXT + TEXT), "supported: one <video>"),
    "question first": (
        "{{ messages[0].content[-1].text }}"
        "{% if messages[0].content | length > 1 %}<video>{% endif %}",
        "supported: one <video>",
    ),
    "another ending": (
        turn(TEXT) + "{% if messages[0].content | length > 1 %}!{% endif %}",
        "the same ending",
    ),
    "a trimmed question": (turn("{{ c['text'] | trim }}"), "changes the question"),
    "an escaped question": (turn("{{ c['text'] | e }}"), "changes the question"),
    "no question": (turn(""), "supported: one <video>"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_templates_that_are_refused(text: str, message: str) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    with pytest.raises(DyCokeError, match=f"^here: .*{message}") as caught:
        render_template(ChatTemplate(text, "here"), tokenizer)
    assert "\n" not in str(caught.value)


def test_a_time_that_is_not_reached_is_no_reason() -> None:
    template = ChatTemplate("{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + turn(TEXT))
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    assert render_template(template, tokenizer).span_start > 0


def test_a_tokenizer_that_adds_tokens_is_refused(model: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    (model / "chat_template.jinja").write_text(PUBLISHED)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 407)]
    )
    tokenizer.save(str(model / "tokenizer.json"))
    with pytest.raises(DyCokeError, match=r"adds <\|endoftext\|> to every text"):
        export_bundle(model, tmp_path / "bundle", DyCokeConfig(), dtype="float32")


@pytest.mark.parametrize("name", ["published", "eos", "break", "generation, trimmed", "llava next"])
@pytest.mark.parametrize("strip", [(), ("lstrip",), ("rstrip",), ("lstrip", "rstrip")], ids=str)
def test_ids_are_those_of_transformers(model: Path, name: str, strip: tuple[str, ...]) -> None:
    """Also where the video's token takes the space beside it."""
    (model / "chat_template.jinja").write_text(OURS[name])
    if strip:
        tokenizer = json.loads((model / "tokenizer.json").read_text())
        token = next(t for t in tokenizer["added_tokens"] if t["content"] == "<video>")
        token |= dict.fromkeys(strip, True)
        (model / "tokenizer.json").write_text(json.dumps(tokenizer))
        config = json.loads((model / "tokenizer_config.json").read_text())
        config["added_tokens_decoder"]["411"] |= dict.fromkeys(strip, True)
        config["additional_special_tokens"].remove("<video>")  # a plain text there has no flags
        (model / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    template = render_template(read_chat_template(model, "hf"), tokenizer)
    middle = tokenizer.encode(
        template.middle + QUESTION + template.suffix, add_special_tokens=False
    )
    prefix = tokenizer.encode(template.prefix, add_special_tokens=False).ids
    wanted = transformers_ids(model, OURS[name], 3, 512)
    assert [*prefix, 512, 513, 514, *middle.ids] == wanted
    assert template.span_start == wanted.index(512)


def test_another_video_token(model: Path) -> None:
    (model / "chat_template.jinja").write_text(turn(TEXT, video="<|vision_start|><|video_pad|>"))
    for name in ("processor_config.json", "tokenizer_config.json"):
        edit(model / name, video_token="<|video_pad|>")
        template = read_chat_template(model, "hf")
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        tokenizer.add_special_tokens([AddedToken("<|video_pad|>", normalized=False)])
        cut = render_template(template, tokenizer)
        assert cut.prefix.endswith("<|vision_start|>")
        assert cut.middle == ""
    edit(model / "tokenizer_config.json", video_token="<video>")  # the tokenizer's comes first
    assert read_chat_template(model, "hf").video == "<video>"
