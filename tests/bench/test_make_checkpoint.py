import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.bench.make_checkpoint import CHAT_TEMPLATE, make_checkpoint
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.cost.dims import LlmDims, ModelDims, VisionDims, preset
from dycoke_trt.demo import CLIPS_DIR
from dycoke_trt.engines.cpu import build_cpu
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.export.checkpoint import open_checkpoint
from dycoke_trt.runtime.pipeline import Pipeline

TINY = ModelDims("tiny", LlmDims(2, 32, 48, 4, 2, 8, 512, False), VisionDims(2, 16, 24, 14, 3))


@pytest.mark.parametrize("tied", [False, True])
def test_shards_open_as_a_checkpoint(tmp_path: Path, tied: bool) -> None:
    dims = replace(TINY, llm=replace(TINY.llm, tied_embeddings=tied))
    directory = tmp_path / "model"
    total = make_checkpoint(directory, dims, heads=2, shard_bytes=20_000)
    assert len(list(directory.glob("*.safetensors"))) > 2
    found = open_checkpoint(directory)
    assert asdict(dims.llm).items() <= asdict(found.llm).items()
    assert found.vision is not None
    assert asdict(dims.vision).items() <= asdict(found.vision).items()
    assert found.dtype == torch.bfloat16
    assert total == 2 * (dims.llm.weights + dims.vision_weights + dims.llm.hidden)
    assert all(bool(found.tensor(name).isfinite().all()) for name in found.names())


def test_the_source_library_reads_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", TINY, Dtype.FP32, heads=2, shard_bytes=20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlavaOnevisionForConditionalGeneration

        load: Any = LlavaOnevisionForConditionalGeneration.from_pretrained
        model, report = load(tmp_path / "model", output_loading_info=True, dtype=torch.float32)
    assert not report["unexpected_keys"]
    assert not {k for k in report["missing_keys"] if "post_layernorm" not in k}
    found = open_checkpoint(tmp_path / "model")
    assert torch.equal(model.lm_head.weight, found.tensor("llm.lm_head.weight"))


def test_one_seed_gives_one_checkpoint(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_checkpoint(tmp_path / name, TINY, heads=2, seed=seed)
    a, b, c = (open_checkpoint(tmp_path / name).revision for name in "abc")
    assert a == b != c
    with pytest.raises(DyCokeError, match="exists"):
        make_checkpoint(tmp_path / "a", TINY)
    small = replace(TINY, llm=replace(TINY.llm, vocab=411))
    with pytest.raises(DyCokeError, match="vocab=411 is not allowed; allowed: more than 411"):
        make_checkpoint(tmp_path / "d", small)


def test_export_and_ask_take_it_as_it_is(tmp_path: Path) -> None:
    """The 0.5B model's shapes, cut to two layers of tower and language model, and in words."""
    whole = preset("llava-ov-0.5b")
    dims = replace(
        whole, llm=replace(whole.llm, layers=2, vocab=2_048), vision=replace(whole.vision, layers=2)
    )
    make_checkpoint(tmp_path / "model", dims)
    bundle = tmp_path / "bundle"
    manifest = export_bundle(
        tmp_path / "model", bundle, DyCokeConfig(l=1), dtype="float32", max_frames=4
    )
    assert manifest.visual_token_base == 2_048
    assert (manifest.vision.image_size, manifest.vision.tokens_per_frame) == (384, 196)
    build_cpu(bundle, kv_tokens=1_024, tokens_per_block=16, max_batch=1)
    pipeline = Pipeline.from_record(bundle)
    answer = pipeline.ask(pipeline.read(CLIPS_DIR / "describe.mp4", 4), "Why?", max_tokens=2)
    assert answer.input_tokens == len(pipeline.prompts.build("Why?", answer.visual_tokens or 0))
    assert answer.visual_tokens == manifest.visual_tokens(4)


def test_processors_of_the_source_library_read_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", TINY, heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer, LlavaOnevisionProcessor
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )

        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        images: Any = LlavaOnevisionImageProcessorPil.from_pretrained(tmp_path / "model")
        values, _ = LlavaOnevisionProcessor.get_processor_dict(str(tmp_path / "model"))
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [410, 411]
    assert (images.size.height, images.image_grid_pinpoints[-1]) == (42, [252, 252])
    assert values["chat_template"] == CHAT_TEMPLATE
    assert values["num_image_tokens"] == TINY.vision.patches
