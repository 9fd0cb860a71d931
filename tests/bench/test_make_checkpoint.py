import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.bench.make_checkpoint import make_checkpoint
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.cost.dims import LlmDims, ModelDims, VisionDims
from dycoke_trt.export.checkpoint import open_checkpoint

TINY = ModelDims("tiny", LlmDims(2, 32, 48, 4, 2, 8, 101, False), VisionDims(2, 16, 24, 14, 3))


@pytest.mark.parametrize("tied", [False, True])
def test_shards_open_as_a_checkpoint(tmp_path: Path, tied: bool) -> None:
    dims = replace(TINY, llm=replace(TINY.llm, tied_embeddings=tied))
    directory = tmp_path / "model"
    total = make_checkpoint(directory, dims, heads=2, shard_bytes=20_000)
    assert len(list(directory.glob("*.safetensors"))) > 2
    found = open_checkpoint(directory)
    assert found.llm.dims == dims.llm
    assert found.vision is not None
    assert found.vision.dims == dims.vision
    assert found.dtype == torch.bfloat16
    assert total == 2 * (dims.llm.weights + dims.vision_weights + dims.llm.hidden)
    assert all(bool(found.tensor(name).isfinite().all()) for name in found.names())


def test_the_source_library_reads_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", TINY, "fp32", heads=2, shard_bytes=20_000)
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
