import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.export.checkpoint import Checkpoint, open_checkpoint
from dycoke_trt.export.names import canonical_name
from safetensors.torch import load_file, save_file


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert a.names() == b.names()
    assert a.llm == b.llm
    assert a.vision == b.vision
    for name in a.names():
        assert torch.equal(a.tensor(name), b.tensor(name)), name


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["transformers4", "transformers5"])
def test_formats_load_alike(checkpoint: Checkpoint, rewrite: Any, kind: str, shards: int) -> None:
    assert_same(open_checkpoint(rewrite(kind, shards=shards)), checkpoint)


@pytest.mark.parametrize("tower", [True, False], ids=["tower inside", "tower apart"])
def test_llava_next_loads_alike(
    checkpoint: Checkpoint, rewrite: Any, tower_directory: Path, tower: bool
) -> None:
    found = open_checkpoint(rewrite("lmms", tower=tower, shards=2), tower_directory)
    assert found.kind == "lmms"
    assert_same(found, checkpoint)


def test_tensors_are_the_models(checkpoint: Checkpoint, hf_model: Any) -> None:
    state = {canonical_name(n): t for n, t in hf_model.state_dict().items()}
    assert set(checkpoint.names()) == set(state) - {None}
    for name in checkpoint.names():
        assert torch.equal(checkpoint.tensor(name), state[name]), name
        rows = state[name].shape[0]
        assert torch.equal(torch.cat([*checkpoint.chunks(name, 0, rows, 100)]), state[name])


def test_configuration(checkpoint: Checkpoint) -> None:
    assert checkpoint.llm.rope_theta == 1e6
    assert checkpoint.llm.eos_ids == (7,)
    assert checkpoint.llm.pad_id == 7
    assert checkpoint.llm.max_positions == 512
    assert checkpoint.vision is not None
    assert checkpoint.vision.layers == 3
    assert checkpoint.vision.tokens_per_frame == 16
    assert checkpoint.dtype == torch.float32


def test_tied_embeddings_serve_as_head(rewrite: Any, checkpoint: Checkpoint) -> None:
    directory = rewrite("transformers4")
    edit(directory, lambda c: c["text_config"].update(tie_word_embeddings=True))
    tensors = load_file(directory / "model.safetensors")
    both = open_checkpoint(directory)  # a head of its own wins, as in transformers 5
    assert torch.equal(both.tensor("llm.lm_head.weight"), checkpoint.tensor("llm.lm_head.weight"))
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, directory / "model.safetensors")
    tied = open_checkpoint(directory)
    assert tied.llm.tied_embeddings
    assert torch.equal(
        tied.tensor("llm.lm_head.weight"), checkpoint.tensor("llm.embed_tokens.weight")
    )
    edit(directory, lambda c: c["text_config"].update(tie_word_embeddings=False))
    refused(directory, r"llm.lm_head.weight \[103, 64\] is missing")


def test_an_earlier_feature_layer_uses_fewer_layers(rewrite: Any) -> None:
    directory = rewrite("transformers5")
    edit(directory, lambda c: c.update(vision_feature_layer=-2))
    found = open_checkpoint(directory)
    assert found.vision is not None
    assert found.vision.layers == 2
    assert not any("vision.encoder.layers.2." in name for name in found.names())


def test_bare_qwen2(rewrite: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = rewrite("lmms", tower=False)
    config = json.loads((source / "config.json").read_text())
    bare = {k: v for k, v in config.items() if not k.startswith("mm_")} | {"model_type": "qwen2"}
    (tmp_path / "config.json").write_text(json.dumps(bare))
    tensors = load_file(source / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "mm_" not in n and "image" not in n},
        tmp_path / "model.safetensors",
    )
    found = open_checkpoint(tmp_path)
    assert found.kind == "qwen2"
    assert found.vision is None
    assert found.llm == checkpoint.llm
    assert set(found.names()) == {n for n in checkpoint.names() if n.startswith("llm.")}


def test_generation_config_wins(rewrite: Any) -> None:
    directory = rewrite("transformers4")
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, 6], "pad_token_id": 0}')
    found = open_checkpoint(directory)
    assert found.llm.eos_ids == (5, 6)
    assert found.llm.pad_id == 0


def test_revision_tells_fine_tunes_apart(rewrite: Any) -> None:
    first, second = rewrite("transformers4"), rewrite("transformers4")
    assert open_checkpoint(first).revision == open_checkpoint(second).revision
    tensors = load_file(second / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, second / "model.safetensors")
    assert open_checkpoint(first).revision != open_checkpoint(second).revision


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


def refused(directory: Path, message: str, tower: Path | None = None) -> None:
    with pytest.raises(DyCokeError, match=message) as caught:
        open_checkpoint(directory, tower)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="mistral"), "'mistral' is no supported checkpoint"),
        (lambda c: c.update(quantization_config={"bits": 4}), "quantization_config"),
        (lambda c: c.update(vision_feature_select_strategy="default"), "allowed: 'full'"),
        (lambda c: c.update(vision_feature_layer=[-1, -2]), "one integer"),
        (lambda c: c.update(vision_feature_layer=9), "vision_feature_layer=9 of 3"),
        (lambda c: c.update(vision_feature_layer=0), "vision_feature_layer=0 of 3"),
        (lambda c: c["text_config"].update(model_type="llama"), "text_config.model_type='llama'"),
        (lambda c: c["vision_config"].update(model_type="clip_vision_model"), "clip_vision_model"),
        (lambda c: c["vision_config"].update(hidden_act="quick_gelu"), "quick_gelu"),
        (lambda c: c["vision_config"].update(hidden_size=33), "a multiple of the heads"),
        (lambda c: c["text_config"].update(rope_scaling={"type": "yarn"}), "yarn"),
        (lambda c: c["text_config"].update(rope_parameters={"rope_type": "linear"}), "linear"),
        (
            lambda c: c["text_config"].update(
                use_sliding_window=True, sliding_window=64, max_window_layers=1
            ),
            "sliding window",
        ),
        (lambda c: c["text_config"].update(num_hidden_layers="2"), "num_hidden_layers='2'"),
        (lambda c: c["text_config"].update(rms_norm_eps=0), "rms_norm_eps=0"),
        (lambda c: c["text_config"].update(num_key_value_heads=3), "a multiple of key-value"),
        (lambda c: c["text_config"].update(hidden_size=128), "config.json asks for"),
        (lambda c: c["text_config"].update(num_hidden_layers=3), r"llm.layers.2.*is missing"),
        (lambda c: c["text_config"].update(num_hidden_layers=1), "no part of LLaVA-OneVision"),
        (lambda c: c["text_config"].update(vocab_size=104), r"\[103, 64\].*\[104, 64\]"),
    ],
)
def test_configurations_that_are_refused(rewrite: Any, change: Any, message: str) -> None:
    directory = rewrite("transformers4")
    edit(directory, change)
    refused(directory, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_newline_position": "diagonal"}, "mm_newline_position='diagonal'"),
        ({"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode='average'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type='flat'"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type='qformer'"),
        ({"add_faster_video": True}, "add_faster_video=True"),
        ({"model_type": "llava_mistral"}, "model_type='llava_mistral'"),
    ],
)
def test_llava_next_settings_that_are_refused(
    rewrite: Any, tower_directory: Path, change: dict[str, Any], message: str
) -> None:
    directory = rewrite("lmms")
    edit(directory, lambda c: c.update(change))
    refused(directory, message, tower_directory)


def test_a_missing_tower_is_asked_for(rewrite: Any, tower_directory: Path, tmp_path: Path) -> None:
    directory = rewrite("lmms", tower=False)
    refused(directory, "not SigLIP-so400m's 1152.*--vision-tower")
    shutil.copy(tower_directory / "config.json", tmp_path)
    refused(directory, "no weights", tmp_path)
    edit(directory, lambda c: c.update(mm_hidden_size=1152))
    refused(directory, "holds no vision tower weights.*--vision-tower")
    refused(rewrite("transformers4"), "leave the option out", tower_directory)


def test_files_that_are_refused(rewrite: Any, tmp_path: Path) -> None:
    refused(tmp_path, "no config.json")
    refused(tmp_path / "nowhere", "no config.json")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "config.json: not JSON")
    (tmp_path / "config.json").write_text("[]")
    refused(tmp_path, "expected a JSON object")

    directory = rewrite("transformers5", shards=3)
    shard = directory / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    refused(directory, r"shard model-00002-of-00003.safetensors is missing \(2\d of 8\d tensors\)")
    shard.write_bytes(content[:-100])
    refused(directory, "truncated or damaged")
    tensors = load_file(directory / "model-00001-of-00003.safetensors")
    tensors.pop(name := next(iter(tensors)))
    shard.write_bytes(content)
    save_file(tensors, directory / "model-00001-of-00003.safetensors")
    refused(directory, f"tensor {name} is missing, but")
    index = directory / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../../outside.safetensors"}}')
    refused(directory, r"shard ../../outside.safetensors is missing")
    index.write_text("{}")
    refused(directory, "no weight_map")
    index.unlink()
    refused(directory, r"not a safetensors checkpoint \(shards without their index\)")
    for shard in directory.glob("*.safetensors"):
        shard.unlink()
    refused(directory, r"not a safetensors checkpoint \(no weights\)")
    (directory / "pytorch_model.bin").touch()
    refused(directory, r"\*.bin weights only")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64])
def test_wrong_dtypes_are_refused(rewrite: Any, dtype: torch.dtype) -> None:
    directory = rewrite("transformers4")
    tensors = load_file(directory / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, directory / "model.safetensors")
    refused(directory, f"tensor {name} is [FI]\\S+; allowed: F32, F16, BF16")


def test_adapters_and_doubles_are_refused(rewrite: Any) -> None:
    directory = rewrite("transformers4")
    tensors = load_file(directory / "model.safetensors")
    extra = "language_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({**tensors, extra: torch.ones(2)}, directory / "model.safetensors")
    refused(directory, "adapters have to be merged")
    double = {**tensors, "model.image_newline": torch.ones(64)}
    save_file(double, directory / "model.safetensors")
    refused(directory, "are both image_newline")
