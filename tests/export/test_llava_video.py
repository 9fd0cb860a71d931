"""LLaVA-Video: the demo model's weights in LLaVA-NeXT's format, with each of its newline layouts.

What is expected comes from transformers' tower, projector and Qwen2; newlines are put in as
LLaVA-NeXT's add_token_per_grid and add_token_per_frame do (tests/compress/test_newlines.py).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.bundle.files import open_bundle
from dycoke_trt.compress.newlines import NEWLINES, Newline
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.core.ttm import ttm_select
from dycoke_trt.demo import CLIPS_DIR, MODEL_DIR
from dycoke_trt.demo.network import load_model
from dycoke_trt.engines.cpu import build_cpu
from dycoke_trt.engines.model import model_of_bundle
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.export.checkpoint import open_checkpoint
from dycoke_trt.runtime.pipeline import Pipeline
from dycoke_trt.runtime.vision import OnnxVision
from dycoke_trt.tests.compress.test_newlines import by_llava_next
from dycoke_trt.tests.export.conftest import Rewrite, renamed
from dycoke_trt.verify.run import verify_bundle
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

N = 36


@pytest.fixture(scope="module")
def source() -> Any:
    return load_model(MODEL_DIR)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json of its SigLIP, with the last layer that LLaVA-NeXT deletes."""
    directory = tmp_path_factory.mktemp("tower")
    vision = json.loads((MODEL_DIR / "config.json").read_text())["vision_config"]
    vision["num_hidden_layers"] += 1
    (directory / "config.json").write_text(json.dumps(vision))
    return directory


def make_checkpoint(directory: Path, **changes: Any) -> Path:
    """The demo model as LLaVA-NeXT saves it; changes: of its config.json."""
    directory.mkdir()
    for file in MODEL_DIR.glob("*token*"):
        shutil.copy(file, directory)
    weights = {}
    for name, tensor in load_file(MODEL_DIR / "model.safetensors").items():
        weights[renamed(name, "lmms")] = tensor
    save_file(weights, directory / "model.safetensors")
    text = json.loads((MODEL_DIR / "config.json").read_text())["text_config"]
    config = {
        **text,
        "model_type": "llava",
        "rope_theta": text.get("rope_theta") or text["rope_parameters"]["rope_theta"],
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_hidden_size": 96,
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_vision_select_layer": -2,
        **changes,
    }
    config.pop("rope_parameters", None)
    config["tie_word_embeddings"] = True
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def features_of(source: Any, frames: torch.Tensor) -> torch.Tensor:
    """uint8 [F, 3, S, S] -> [F, N, D] by transformers, in LLaVA-NeXT's scale of pixels."""
    pixels = (frames[None].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        (features,) = source.model.get_video_features(pixels).pooler_output
    by_frame: torch.Tensor = features[:-1].view(len(frames), N, -1)
    return by_frame


@pytest.fixture(scope="module", params=NEWLINES)
def bundle(request: Any, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_checkpoint(folder / "source", mm_newline_position=request.param)
    path: Path = folder / "bundle"
    options = {"dtype": "float32", "max_frames": 16, "vision_tower": tower}
    export_bundle(checkpoint, path, DyCokeConfig(k=0.5, p=0), **options)
    return path


def test_manifest_and_plan_know_the_layout(bundle: Path) -> None:
    manifest = open_bundle(bundle)
    newline = manifest.vision.newline
    one = newline == "one_token"
    assert manifest.arch == ("llava-onevision-qwen2" if one else "llava-video-qwen2")
    newlines = {"grid": 8 * 6, "frame": 8, "one_token": 1, "no_token": 0}[newline]
    assert manifest.visual_tokens(8) == 2 * (36 + 3 * 18) + newlines
    assert model_of_bundle(bundle).visual_tokens(8) == manifest.visual_tokens(8)
    assert all(check.passed for check in verify_bundle(bundle))


def test_verify_compares_with_the_source(bundle: Path, tower: Path) -> None:
    """transformers' classes with the checkpoint's weights: every stage, every layout."""
    checks = list(verify_bundle(bundle, bundle.parent / "source", tower))
    assert [check.stage for check in checks if not check.passed] == []
    assert {"vision visual_embeds", "llm decode logits"} < {check.stage for check in checks}


def test_a_tower_in_its_own_directory_is_compared(
    rewrite: Rewrite, tower_directory: Path, tmp_path: Path
) -> None:
    checkpoint, bundle = rewrite("lmms", tower=False), tmp_path / "bundle"
    export_bundle(
        checkpoint, bundle, DyCokeConfig(l=1), dtype="float32", max_frames=8,
        vision_tower=tower_directory,
    )  # fmt: skip
    checks = list(verify_bundle(bundle, checkpoint, tower_directory))
    assert [check.stage for check in checks if not check.passed] == []
    with pytest.raises(DyCokeError, match="own checkpoint directory with --vision-tower"):
        list(verify_bundle(bundle, checkpoint))


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ("mm_newline_position", ["vision visual_embeds"]),
        ("rope_theta", ["llm prefill logits", "llm decode logits"]),
        ("model.image_newline", ["vision visual_embeds"]),
        ("model.mm_projector.2.bias", [
            "vision projector/linear_2", "vision pooling/output", "vision visual_embeds"
        ]),
    ],
)  # fmt: skip
def test_verify_sees_what_is_another(
    tower: Path, tmp_path: Path, change: str, failing: list[str]
) -> None:
    """The source differs in one thing, and the bundle claims to be of it."""
    made = make_checkpoint(tmp_path / "source", mm_newline_position="frame")
    export_bundle(
        made, tmp_path / "bundle", DyCokeConfig(k=0.5, p=0), dtype="float32", max_frames=8,
        vision_tower=tower,
    )  # fmt: skip
    if change.startswith("model."):
        weights = load_file(made / "model.safetensors")
        weights[change] = weights[change] + 0.1
        save_file(weights, made / "model.safetensors")
    else:
        config = json.loads((made / "config.json").read_text())
        config[change] = {"mm_newline_position": "no_token", "rope_theta": 500.0}[change]
        (made / "config.json").write_text(json.dumps(config))
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    manifest["source"]["revision"] = open_checkpoint(made, tower).revision
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(manifest))
    checks = verify_bundle(tmp_path / "bundle", made, tower)
    assert [check.stage for check in checks if not check.passed] == failing


def test_frames_to_embeddings_equal_transformers(bundle: Path, source: Any) -> None:
    newline = open_bundle(bundle).vision.newline
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (2, 8, 3, 96, 96), dtype=torch.uint8, generator=generator)
    learned = source.model.image_newline.detach()
    found = OnnxVision(bundle)(frames)
    for video, own in zip(frames, found, strict=True):
        features = features_of(source, video)
        rows = ttm_select(features, 0.5)
        # By the released code on whole frames, less what TTM drops: newlines are none of it.
        marked = torch.arange(8 * N, dtype=torch.float32).view(8, N, 1)
        order = by_llava_next(marked, torch.tensor([-1.0]), newline)[:, 0].long()
        order = order[(order < 0) | torch.isin(order, rows)]
        table = torch.cat([features.flatten(0, 1), learned[None]])
        torch.testing.assert_close(own, table[order], rtol=0, atol=2e-4)


def test_answers_equal_transformers(bundle: Path, source: Any) -> None:
    """Greedy tokens of Qwen2 by transformers, after the same text and embeddings."""
    build_cpu(bundle, kv_tokens=1024, tokens_per_block=8, max_batch=1)
    pipeline = Pipeline.from_record(bundle)
    frames = pipeline.read(CLIPS_DIR / "describe.mp4", 8)
    question = "What appears first?"
    answer = pipeline.ask(frames, question, max_tokens=10)
    template = open_bundle(bundle).template
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json"))

    def embed(text: str) -> torch.Tensor:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        embedded: torch.Tensor = source.get_input_embeddings()(torch.tensor(ids))
        return embedded

    visual = OnnxVision(bundle)(torch.as_tensor(frames).permute(0, 3, 1, 2)[None].contiguous())[0]
    after = embed(template.middle + question + template.suffix)
    inputs = torch.cat([embed(template.prefix), visual, after])[None]
    with torch.no_grad():
        ids = source.generate(inputs_embeds=inputs, max_new_tokens=10, do_sample=False)[0]
    assert answer.text == tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    assert answer.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_newline_position": "diagonal"}, r"'diagonal'.*one_token, frame, grid, no_token"),
        ({"mm_newline_position": "grid", "add_faster_video": True}, "add_faster_video"),
        ({"mm_newline_position": "grid", "mm_spatial_pool_mode": "average"}, "mm_spatial_pool"),
        ({"mm_newline_position": "grid", "mm_patch_merge_type": "flat"}, "mm_patch_merge_type"),
    ],
)
def test_what_it_cannot_be_is_refused_by_name(
    tower: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    directory = make_checkpoint(tmp_path / "source", **changes)
    with pytest.raises(DyCokeError, match=message) as refused:
        open_checkpoint(directory, tower)
    assert "config.json" in str(refused.value)


def test_no_newline_needs_no_weight_of_one(tower: Path, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "source", mm_newline_position="no_token")
    weights = load_file(directory / "model.safetensors")
    del weights["model.image_newline"]
    save_file(weights, directory / "model.safetensors")
    assert "image_newline" not in open_checkpoint(directory, tower).names()
    layouts: tuple[Newline, ...] = ("grid", "frame")
    for layout in layouts:
        config = json.loads((directory / "config.json").read_text())
        config["mm_newline_position"] = layout
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(DyCokeError, match="image_newline"):
            open_checkpoint(directory, tower)
