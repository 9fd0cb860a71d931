"""Tiny LLaVA-OneVision checkpoints with random weights, under the key names of every format."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.export.checkpoint import Checkpoint, open_checkpoint
from dycoke_trt.tests.export.chats import model_without_template
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

IMAGE, PATCH, SIDE, TOWER_LAYERS = 101, 14, 7, 3  # 3 pixels beyond the last whole patch
VOCAB, EOS = 103, 7
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
Rewrite = Callable[..., Path]


@pytest.fixture(scope="session")
def hf_model() -> Any:
    """The source model: a 7 x 7 patch tower of 3 layers, a 2-layer Qwen2 of 8 / 4 heads, fp32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import (
            LlavaOnevisionConfig,
            LlavaOnevisionForConditionalGeneration,
            Qwen2Config,
            SiglipVisionConfig,
        )

        torch.manual_seed(0)
        text = Qwen2Config(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=512,
            rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
            eos_token_id=EOS,
        )
        vision = SiglipVisionConfig(**VISION, num_hidden_layers=TOWER_LAYERS, vision_use_head=False)
        config = LlavaOnevisionConfig(
            vision_config=vision, text_config=text, image_token_index=100, video_token_index=101
        )
        model = LlavaOnevisionForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:  # initial weights are too small to tell patches apart
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="session")
def saved(hf_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as the installed transformers writes it, with a tokenizer of few words."""
    directory = tmp_path_factory.mktemp("saved") / "hf"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf_model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel({"?": 0, "user": 1, "assistant": 2}, "?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(["<video>"])
    words.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "chat_template.jinja").write_text(
        "user {% for part in messages[0]['content'] %}"
        "{% if part['type'] == 'video' %}<video>{% else %}: {{ part['text'] }}{% endif %}"
        "{% endfor %} assistant"
    )
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = {**half, "size": {"height": IMAGE, "width": IMAGE}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


@pytest.fixture(scope="session")
def tower_directory(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tower's own SigLIP directory: one layer more, which LLaVA-NeXT deletes, and a head."""
    directory = tmp_path_factory.mktemp("tower")
    config = {"model_type": "siglip_vision_model", **VISION, "num_hidden_layers": TOWER_LAYERS + 1}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, tensor in load_file(saved / "model.safetensors").items():
        if (at := name.find("vision_tower.")) >= 0:
            name = "vision_model." + name[at + len("vision_tower.") :].removeprefix("vision_model.")
            tensors[name] = tensor
            if ".layers.0." in name:
                tensors[name.replace(".layers.0.", f".layers.{TOWER_LAYERS}.")] = tensor.clone()
    tensors["vision_model.head.probe"] = torch.zeros(1, 1, 32)
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="session")
def rewrite(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Rewrite:
    """rewrite(kind, tower=True, shards=1) -> directory with the names of a format.

    kind: `transformers4`, `transformers5` (names in memory), `lmms`. tower=False leaves its
    weights out.
    """

    def make(kind: str, *, tower: bool = True, shards: int = 1) -> Path:
        directory = tmp_path_factory.mktemp(kind) / "checkpoint"
        shutil.copytree(saved, directory, ignore=shutil.ignore_patterns("*.safetensors"))
        tensors = {
            renamed(name, kind): tensor
            for name, tensor in load_file(saved / "model.safetensors").items()
            if tower or "vision_tower" not in name
        }
        write_shards(directory, tensors, shards)
        config = json.loads((saved / "config.json").read_text())
        if kind == "transformers4":
            text = config["text_config"]
            text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
            text["rope_scaling"] = None
        if kind == "lmms":
            text = config["text_config"]
            rope = text.pop("rope_parameters")["rope_theta"]
            config = {
                **text,
                "model_type": "llava",
                "rope_theta": rope,
                "rope_scaling": None,
                "mm_vision_tower": "google/siglip-so400m-patch14-384",
                "mm_hidden_size": 32,
                "mm_projector_type": "mlp2x_gelu",
                "mm_spatial_pool_mode": "bilinear",
                "mm_newline_position": "one_token",
                "mm_patch_merge_type": "spatial_unpad",
                "mm_resampler_type": None,
                "mm_vision_select_layer": -2,
            }
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return make


def renamed(name: str, kind: str) -> str:
    """A saved name -> the same tensor's name in `kind`."""
    name = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
    if name == "lm_head.weight":
        name = "language_model.lm_head.weight"
    if name.startswith("language_model.") and ".lm_head." not in name and ".model." not in name:
        name = name.replace("language_model.", "language_model.model.", 1)
    if kind == "transformers4":
        return name.replace("vision_tower.", "vision_tower.vision_model.")
    if kind == "transformers5":
        if name == "language_model.lm_head.weight":
            return "lm_head.weight"
        return "model." + name.replace("language_model.model.", "language_model.")
    name = name.replace("vision_tower.", "model.vision_tower.vision_tower.vision_model.")
    name = name.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
    name = name.replace("multi_modal_projector.linear_2", "model.mm_projector.2")
    if name == "image_newline":
        return "model.image_newline"
    return name.removeprefix("language_model.")


def write_shards(directory: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture(scope="session")
def checkpoint(saved: Path) -> Checkpoint:
    return open_checkpoint(saved)


@pytest.fixture(scope="session")
def onnx_session() -> Any:
    """A function path -> ONNX Runtime session on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4

    def make(path: Path) -> Any:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    return make


@pytest.fixture(scope="session")
def run_onnx(onnx_session: Any) -> Any:
    """A function (path, {input: tensor}) -> {output: tensor}."""

    def run(path: Path, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        session = onnx_session(path)
        values = session.run(None, {name: value.numpy() for name, value in feeds.items()})
        names = (output.name for output in session.get_outputs())
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The demo checkpoint without a chat template."""
    return model_without_template(tmp_path)
