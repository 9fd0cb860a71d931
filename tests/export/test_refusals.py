"""Directories that hold something else than the plain weights of one model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.export.checkpoint import Checkpoint, open_checkpoint
from safetensors.torch import load_file, save_file

QUERY = "language_model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def model(rewrite: Any) -> Path:
    directory: Path = rewrite("transformers4")
    return directory


def refused(directory: Path, message: str) -> None:
    with pytest.raises(DyCokeError, match=message) as caught:
        open_checkpoint(directory)
    assert "\n" not in str(caught.value)


def edit(path: Path, **values: Any) -> None:
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**old, **values}))


def edit_tensors(directory: Path, *, drop: str = "", **more: torch.Tensor) -> None:
    tensors = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name != drop}
    save_file({**kept, **more}, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("section", "key", "value", "shown"),
    [
        (None, "quantization_config", {"quant_method": "awq", "bits": 4}, "(awq)"),
        ("text_config", "quantization_config", {"quant_method": "gptq"}, "(gptq)"),
        ("vision_config", "quantization_config", {"load_in_8bit": True}, ""),
        (
            None,
            "compression_config",
            {"quant_method": "compressed-tensors"},
            "(compressed-tensors)",
        ),
        ("text_config", "quantization", {"group_size": 64, "bits": 4}, ""),
    ],
)
def test_quantised_by_its_configuration(
    model: Path, section: str | None, key: str, value: Any, shown: str
) -> None:
    config = json.loads((model / "config.json").read_text())
    (config if section is None else config[section])[key] = value
    (model / "config.json").write_text(json.dumps(config))
    place = key if section is None else f"{section}.{key}"
    shown = shown.replace("(", r"\(").replace(")", r"\)")
    refused(model, f"config.json: {place} ?{shown}: the weights are quantised")


@pytest.mark.parametrize(
    "file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"]
)
def test_quantised_by_a_file_beside_it(model: Path, file: str) -> None:
    (model / file).write_text('{"bits": 4}')
    refused(model, f"{file}: the weights are quantised")


@pytest.mark.parametrize(
    "name",
    [
        "qweight", "qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv",
        "weight_scale_2", "input_scale", "k_scale", "weight_packed", "weight_zero_point", "SCB",
        "weight.absmax", "weight.quant_map", "weight.nested_absmax",
        "weight.quant_state.bitsandbytes__nf4",
    ],
)  # fmt: skip
def test_quantised_by_a_tensor(model: Path, name: str) -> None:
    """GPTQ, AWQ, fp8, Model Optimizer, compressed-tensors, bitsandbytes; no word in config.json."""
    edit_tensors(model, drop=f"{QUERY}.weight", **{f"{QUERY}.{name}": torch.zeros(4)})
    refused(model, f"tensor {QUERY}.{name}: the weights are quantised.*unquantised checkpoint")


def test_the_norms_of_siglip_are_no_scales(model: Path) -> None:
    """`logit_scale` of a whole SigLIP ends like the marks above, and is none."""
    edit_tensors(model, logit_scale=torch.zeros(1))
    assert open_checkpoint(model).kind == "hf"


@pytest.mark.parametrize(
    "file", ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"]
)
def test_an_adapter_beside_the_weights(model: Path, file: str) -> None:
    (model / file).write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    base = ", for org/base" if file.endswith("json") else ""
    refused(model, rf"adapter beside it \({file}{base}\); merge the adapter")


def test_an_adapter_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    save_file(
        {"base_model.model.x.lora_A.weight": torch.ones(2)}, tmp_path / "adapter_model.safetensors"
    )
    refused(tmp_path, "an adapter, not a checkpoint .adapter_config.json, for org/base.; merge")
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "an adapter, not a checkpoint .adapter_model.safetensors.; merge")


@pytest.mark.parametrize(
    "name",
    [
        f"{QUERY}.lora_A.weight", f"{QUERY}.lora_embedding_B", f"{QUERY}.base_layer.weight",
        f"base_model.model.{QUERY}.weight", f"{QUERY}.modules_to_save.default.weight",
        f"{QUERY}.ia3_l", f"{QUERY}.lora_magnitude_vector", f"{QUERY}.hada_w1_a",
    ],
)  # fmt: skip
def test_an_adapter_in_the_weights(model: Path, name: str) -> None:
    edit_tensors(model, **{name: torch.ones(2)})
    refused(model, f"tensor {name} is an adapter's; adapters have to be merged")


def test_another_tensor_is_refused_by_name(model: Path) -> None:
    edit_tensors(model, **{f"{QUERY[:-6]}q_norm.weight": torch.ones(8)})
    refused(model, "q_norm.weight is no part of LLaVA-OneVision")


def same_weights(directory: Path, checkpoint: Checkpoint) -> bool:
    name = "llm.layers.0.self_attn.q_proj.weight"
    return torch.equal(open_checkpoint(directory).tensor(name), checkpoint.tensor(name))


def test_a_stale_index_does_not_count(model: Path, checkpoint: Checkpoint) -> None:
    """transformers takes model.safetensors first, whatever lies beside it."""
    index = model / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    assert same_weights(model, checkpoint)
    index.write_text("not even JSON")
    assert same_weights(model, checkpoint)


def test_the_shards_of_a_stale_index_do_not_count(rewrite: Any, checkpoint: Checkpoint) -> None:
    old: Path = rewrite("transformers4", shards=2)
    for shard in old.glob("*.safetensors"):
        save_file({n: t * 0 for n, t in load_file(shard).items()}, shard)
    assert not same_weights(old, checkpoint)
    shutil.copy(rewrite("transformers5") / "model.safetensors", old)
    assert same_weights(old, checkpoint)


def test_an_index_of_one_file(model: Path, checkpoint: Checkpoint) -> None:
    names = load_file(model / "model.safetensors")
    weight_map = dict.fromkeys(names, "model.safetensors")
    edit(model / "model.safetensors.index.json", weight_map=weight_map)
    assert same_weights(model, checkpoint)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model-00001-of-00002.safetensors"], "shards without their index"),
        (["model.fp16.safetensors"], "only model.fp16.safetensors"),
        (["mm_projector.bin"], "a projector alone, mm_projector.bin"),
        (["pytorch_model.bin"], r"\*.bin weights only"),
        (["consolidated.00.pth"], r"\*.pth weights only"),
        (["model-q4_k_m.gguf"], r"\*.gguf weights only"),
        ([], "no weights"),
    ],
)
def test_what_lies_there_instead(model: Path, files: list[str], message: str) -> None:
    (model / "model.safetensors").unlink()
    for name in files:
        (model / name).touch()
    refused(model, rf"not a safetensors checkpoint \({message}\)")


@pytest.mark.parametrize("rows", [152_064, 152_128])
def test_visual_ids_begin_at_the_padded_vocabulary(tmp_path: Path, rows: int) -> None:
    """The original 7B has 152,064 rows, Hugging Face's resized 152,128; the tokenizer has fewer."""
    from dycoke_trt.bench.make_checkpoint import make_checkpoint
    from dycoke_trt.core.config import DyCokeConfig
    from dycoke_trt.cost.dims import LlmDims, ModelDims, VisionDims
    from dycoke_trt.export.bundle import export_bundle
    from dycoke_trt.runtime.prompt import PromptBuilder

    llm = LlmDims(2, 16, 16, 2, 1, 8, rows, True)
    dims = ModelDims("rows", llm, VisionDims(1, 16, 16, 14, 3))
    make_checkpoint(tmp_path / "model", dims, heads=2)
    manifest = export_bundle(
        tmp_path / "model", tmp_path / "bundle", DyCokeConfig(l=1), max_frames=4
    )
    assert manifest.visual_token_base == manifest.llm.vocab == rows
    ids = PromptBuilder(tmp_path / "bundle", manifest).build("Why?", 3)
    start = manifest.template.span_start
    assert ids[start : start + 3] == [rows, rows + 1, rows + 2]
    assert max(ids[:start] + ids[start + 3 :]) < 412
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_config"]["vocab_size"] = rows - 64
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    refused(
        tmp_path / "model", rf"has shape \[{rows}, 16\], config.json asks for \[{rows - 64}, 16\]"
    )
