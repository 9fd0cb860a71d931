"""Chat templates: found and rendered as transformers does, or refused in one line."""

from __future__ import annotations

import ast
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from dycoke_trt.bench.make_checkpoint import CHAT_TEMPLATE as PUBLISHED
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.export import chat_template as module
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.export.chat_template import ChatTemplate, environment, read_chat_template
from dycoke_trt.export.checkpoint import Checkpoint
from dycoke_trt.tests.export.chats import OURS, QUESTION, SPECIAL, edit
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

USER = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}
CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "user", "content": QUESTION}],
    [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        USER,
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "é 你好"}]},
    ],
]


def installed_templates() -> dict[str, str]:
    """Every chat template in transformers' sources, and every Jinja file of any package."""
    package = Path(transformers.__file__).parent
    templates = {
        str(path): path.read_text()
        for end in ("jinja", "jinja2", "j2")
        for path in package.parent.glob(f"*/**/*chat*.{end}")
    }
    sources = [*package.glob("models/*/*process*.py"), *package.glob("models/*/*token*.py")]
    for path in [*sources, *package.glob("*.py"), package / "utils/chat_template_utils.py"]:
        text = path.read_text()
        if "{%" not in text or "messages" not in text:
            continue
        tree = ast.parse(text)
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in documentation:
                value = node.value
                if isinstance(value, str) and "{%" in value and "in messages" in value:
                    templates[f"{path}:{node.lineno}"] = value
    return templates


def outcome(render: Any) -> str:
    """What it renders; nothing for one that fails."""
    try:
        return str(render())
    except Exception:
        return "fails"


def test_our_environment_renders_what_transformers_does() -> None:
    found = installed_templates()
    assert len(found) >= 3, found
    rendered = set()
    for name, text in {**found, **OURS}.items():
        for chat in CHATS:
            variables: dict[str, Any] = {"add_generation_prompt": True, **SPECIAL}
            theirs = outcome(
                lambda t=text, c=chat, v=variables: render_jinja_template(
                    [c], chat_template=t, **v
                )[0][0]
            )
            ours = outcome(
                lambda t=text, c=chat, v=variables: (
                    environment().from_string(t).render(messages=c, tools=None, documents=None, **v)
                )
            )
            assert ours == theirs, name
            rendered.add(name if ours != "fails" else "")
    assert {*found, *OURS} - rendered <= {"raises", "no such filter", "not safe"}


def test_without_transformers_the_prompt_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    templates = [ChatTemplate(text, special=SPECIAL) for text in (PUBLISHED, OURS["eos"])]
    with_it = [template.render(CHATS[2]) for template in templates]
    monkeypatch.setattr(module, "_transformers", lambda: None)
    assert [template.render(CHATS[2]) for template in templates] == with_it


def test_the_published_form() -> None:
    """As in transformers' tests of its processor, and in several repositories."""
    assert ChatTemplate(PUBLISHED).render(CHATS[0]) == (
        f"<|im_start|>user <video>\n{QUESTION}<|im_end|><|im_start|>assistant\n"
    )
    assert ChatTemplate(PUBLISHED).render(CHATS[2]) == (
        "<|im_start|>system \nBe brief.<|im_end|>"
        f"<|im_start|>user <video>\n{QUESTION}<|im_end|>"
        "<|im_start|>assistant \nA dog.<|im_end|>"
        "<|im_start|>user <image>\né 你好<|im_end|><|im_start|>assistant\n"
    )


FILES: dict[str, dict[str, Any]] = {
    "jinja": {"chat_template.jinja": "J"},
    "json": {"chat_template.json": {"chat_template": "L"}, "chat_template.jinja": "J"},
    "processor": {
        "processor_config.json": {"chat_template": "P"},
        "chat_template.json": {"chat_template": "L"},
    },
    "tokenizer too": {
        "chat_template.jinja": "J", "tokenizer_config.json": {"chat_template": "T"}
    },
}  # fmt: skip


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_the_template_that_counts(model: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        if isinstance(content, str):
            (model / name).write_text(content)
        else:
            edit(model / name, **content)
    values, _ = transformers.LlavaOnevisionProcessor.get_processor_dict(str(model))
    assert read_chat_template(model, "hf").text == values["chat_template"]


@pytest.mark.parametrize(
    "value", ["T", {"default": "T", "rag": "R"}, [{"name": "default", "template": "T"}]]
)
def test_a_tokenizers_template_counts_without_another(model: Path, value: Any) -> None:
    edit(model / "tokenizer_config.json", chat_template=value)
    template = read_chat_template(model, "hf")
    assert (template.text, Path(template.origin).name) == ("T", "tokenizer_config.json")


def test_llava_next_has_its_own_whatever_the_files_say(model: Path) -> None:
    (model / "chat_template.jinja").write_text("J")
    edit(model / "tokenizer_config.json", chat_template="T")
    text = read_chat_template(model, "lmms").render(CHATS[0])
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<video>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"bos_token": "<|im_start|>", "unk_token": {"__type": "AddedToken", "content": "<image>"}},
        {"eos_token": None, "pad_token": None},
        {"sep_token": "<video>", "cls_token": "<image>"},
    ],
    ids=str,
)
def test_special_tokens_are_the_tokenizers(model: Path, change: dict[str, Any]) -> None:
    (model / "chat_template.jinja").write_text(PUBLISHED)
    edit(model / "tokenizer_config.json", **change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = AutoTokenizer.from_pretrained(model).special_tokens_map
    assert read_chat_template(model, "hf").special == tokens


def test_special_tokens_that_no_file_names_are_qwen2s(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ eos_token }}")
    config = json.loads((model / "tokenizer_config.json").read_text())
    kept = {k: v for k, v in config.items() if not k.endswith("_token")}
    (model / "tokenizer_config.json").write_text(json.dumps(kept))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = AutoTokenizer.from_pretrained(model).special_tokens_map
    assert read_chat_template(model, "hf").special == tokens


def test_refusals_come_before_any_weight(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "tensor", None)
    monkeypatch.setattr(Checkpoint, "chunks", None)
    target = tmp_path / "bundle"

    def refused(message: str) -> None:
        with pytest.raises(DyCokeError, match=message):
            export_bundle(model, target, DyCokeConfig(), dtype="float32")
        assert not target.exists()

    refused("holds no chat template")
    (model / "chat_template.jinja").write_text("{{ nothing() }}")
    refused("chat_template.jinja: cannot be rendered .'nothing' is undefined")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens([f"<{i}>" for i in range(200)])
    tokenizer.save(str(model / "tokenizer.json"))
    refused("its last token has id 611, the embedding 512 rows")
    (model / "tokenizer.json").write_text("{}")
    refused("tokenizer.json: cannot be read")
    edit(model / "generation_config.json", eos_token_id=None)
    config = json.loads((model / "config.json").read_text())
    config["text_config"].pop("eos_token_id")
    (model / "config.json").write_text(json.dumps(config))
    refused("names no eos_token_id")
