"""Chat templates: found, rendered and cut as transformers does, or refused in one line."""

from __future__ import annotations

import ast
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
import tritonclient.grpc as grpc
from dycoke_trt.bench.make_checkpoint import CHAT_TEMPLATE as PUBLISHED
from dycoke_trt.bundle.files import open_bundle
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import CLIPS_DIR, MODEL_DIR
from dycoke_trt.engines.cpu import build_cpu
from dycoke_trt.export import chat_template as module
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.export.chat_template import ChatTemplate, environment, read_chat_template
from dycoke_trt.export.checkpoint import Checkpoint
from dycoke_trt.export.template import render_template
from dycoke_trt.runtime.pipeline import Pipeline
from dycoke_trt.runtime.prompt import PromptBuilder
from dycoke_trt.runtime.protocol import ENSEMBLE, PREPROCESSING
from dycoke_trt.tests.triton_repo.conftest import SERVER_ENVIRONMENT
from dycoke_trt.tests.triton_repo.streams import ask, tensor
from dycoke_trt.triton_repo.launcher import serving
from dycoke_trt.triton_repo.repository import write_repository
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

QUESTION = "What's in the <b>video</b> & why?"
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


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The demo checkpoint without a template."""
    directory = tmp_path / "model"
    shutil.copytree(MODEL_DIR, directory)
    (directory / "chat_template.jinja").unlink()
    return directory


def edit(path: Path, **values: Any) -> None:
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**old, **values}))


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


def test_the_published_form_through_export_server_and_ask(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(PUBLISHED)
    bundle, clip = tmp_path / "bundle", CLIPS_DIR / "describe.mp4"
    config = DyCokeConfig()
    manifest = export_bundle(model, bundle, config, dtype="float32", max_frames=8)
    visual = manifest.visual_tokens(8)
    wanted = transformers_ids(model, PUBLISHED, visual, manifest.visual_token_base)
    assert manifest.template.span_start == wanted.index(manifest.visual_token_base)
    assert PromptBuilder(bundle, open_bundle(bundle)).build(QUESTION, visual) == wanted
    build_cpu(bundle, kv_tokens=1_024, tokens_per_block=8, max_batch=1)
    pipeline = Pipeline.from_record(bundle)
    answer = pipeline.ask(pipeline.read(clip, 8), QUESTION, max_tokens=2)
    assert answer.prompt_tokens == len(wanted)
    repository = write_repository(bundle, tmp_path / "repository", threads=1)
    with serving(repository, environment=SERVER_ENVIRONMENT) as server:
        given = {"text_input": QUESTION, "video_file_input": clip.read_bytes(), "num_frames": 8}
        tensors = [tensor(name, value) for name, value in given.items()]
        with grpc.InferenceServerClient(server.grpc) as client:
            prompt = client.infer(PREPROCESSING, tensors, request_id="published")
        assert prompt.as_numpy("input_ids").tolist() == [wanted]
        options = {"max_tokens": 2, "return_num_input_tokens": True}
        reply = ask(server.grpc, ENSEMBLE, given | options)
        assert (reply.text, reply.input_tokens) == (answer.text, len(wanted))
