"""What training relies on: packed questions equal separate ones, features are the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.compress.base import visual_tokens
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.ttm import ttm_select
from dycoke_trt.demo.network import (
    TOKENS_PER_FRAME,
    build_model,
    frame_features,
    load_model,
    save_model,
)
from dycoke_trt.demo.packing import Packer, packed_attention
from dycoke_trt.demo.pruning import ttm
from dycoke_trt.demo.shapes import questions, scene_for
from dycoke_trt.demo.tokenizer import (
    VIDEO,
    build_prompt,
    load_tokenizer,
    prompt_prefix,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    train_tokenizer(made)
    save_model(build_model(load_tokenizer(made), seed=0), made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(folder)


@torch.no_grad()
def test_packed_questions_predict_what_separate_prompts_predict(folder: Path, model: Any) -> None:
    tokenizer = load_tokenizer(folder)
    packer = Packer(tokenizer)
    visual = torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(0))
    asked = [[packer.encode(q) for q in questions(scene_for(seed))] for seed in (6, 7)]
    with packed_attention(model):
        packed = packer.answers(model, visual, asked).logits
    separate = []
    before = tokenizer(prompt_prefix())["input_ids"]
    for video, row in enumerate(asked):
        for question in row:
            ids = torch.tensor([before + [0] * 41 + question.ids])
            embeds = model.get_input_embeddings()(ids)
            seen = torch.cat([visual[video], model.model.image_newline[None]])
            embeds[0, len(before) : len(before) + 41] = seen
            answers = len(question.ids) - question.answer_from
            separate.append(model(inputs_embeds=embeds).logits[0, -answers - 1 : -1])
    torch.testing.assert_close(packed, torch.cat(separate), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_frame_features_are_those_of_the_model_itself(model: Any) -> None:
    pixels = torch.rand(1, 16, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mine = frame_features(model, pixels[0]).flatten(0, 1)
    theirs = model.model.get_video_features(pixels)
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
    assert theirs.shape[1] == visual_tokens(16, TOKENS_PER_FRAME, DyCokeConfig.off(), "one_token")
    if hasattr(model.model.vision_tower, "vision_model"):
        pytest.skip("this transformers gives the state after post_layernorm")
    torch.testing.assert_close(mine, theirs[0, :-1])


def test_the_tokenizer_encodes_anything_and_applies_the_chat_template(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for text in ("First a red bar appears on the left.", "héllo 日本\n\n 12 <tag>", "\t x"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    content = [{"type": "video"}, {"type": "text", "text": "What appears first?"}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert chat == build_prompt("What appears first?")
    many = tokenizer(build_prompt("What appears first?", 577))["input_ids"]
    assert many.count(tokenizer.convert_tokens_to_ids(VIDEO)) == 577


@pytest.mark.parametrize("k", [0.3, 0.5, 0.7])
def test_training_prunes_by_the_rule_of_core(k: float) -> None:
    features = torch.randn(16, 36, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ttm(features, k), ttm_select(features, k))
