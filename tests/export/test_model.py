import json
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.arch.spec import PixelScale
from dycoke_trt.bundle.llm_reader import read_llm
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.export.checkpoint import Checkpoint, open_checkpoint
from dycoke_trt.export.model import export_parts

CONFIG = DyCokeConfig(l=1)


def files_in(directory: Path) -> list[str]:
    found = (p for p in directory.rglob("*") if p.is_file())
    return sorted(p.relative_to(directory).as_posix() for p in found)


def test_parts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    parts = export_parts(checkpoint, tmp_path / "parts", CONFIG, Dtype.BF16, 2)
    assert list(parts.files) == files_in(tmp_path / "parts")
    assert parts.files == (
        "llm/config.json",
        "llm/rank0.safetensors",
        "llm/rank1.safetensors",
        "tokenizer/chat_template.jinja",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "vision.safetensors",
        "vision_ttm.onnx",
    )
    assert [p.name for p in tmp_path.iterdir()] == ["parts"]
    assert parts.source_revision == checkpoint.revision
    assert parts.visual_token_base == 103 == read_llm(tmp_path / "parts" / "llm").visual_token_base
    assert parts.visual_tokens(8) == 2 * (16 + 3 * 4) + 1
    assert (parts.family, parts.newline) == ("llava-onevision-qwen2", "one_token")
    assert (parts.eos_ids, parts.pad_id, parts.image_size) == ((7,), 7, 101)
    assert parts.pixel_scale == PixelScale()
    assert parts.template is not None
    assert (parts.template.prefix, parts.template.middle) == ("user ", ": ")
    assert parts.template.span_start == 1


def test_a_bare_llm_gives_the_llm_alone(rewrite: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = rewrite("lmms", tower=False)
    config = json.loads((source / "config.json").read_text())
    bare = {k: v for k, v in config.items() if not k.startswith("mm_")} | {"model_type": "qwen2"}
    (source / "config.json").write_text(json.dumps(bare))
    tensors = load_file(source / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "mm_" not in n and "newline" not in n}
    save_file(kept, source / "model.safetensors")
    parts = export_parts(open_checkpoint(source), tmp_path / "p", CONFIG, tokenizer=False)
    assert files_in(tmp_path / "p") == ["llm/config.json", "llm/rank0.safetensors"]
    assert parts.vision is None
    assert parts.image_size is None
    with pytest.raises(ValueError, match="no visual tokens"):
        parts.visual_tokens(8)


@pytest.mark.parametrize(
    ("config", "tp", "message"),
    [
        (CONFIG, 3, "tp=3 is impossible"),
        (DyCokeConfig.paper(), 1, "leaves nothing to prune"),
        (DyCokeConfig.reference(), 1, "ttm='reference' cannot be exported"),
    ],
)
def test_a_refusal_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, config: DyCokeConfig, tp: int, message: str
) -> None:
    with pytest.raises(DyCokeError, match=message):
        export_parts(checkpoint, tmp_path / "parts", config, Dtype.FP32, tp)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "chunks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_parts(checkpoint, tmp_path / "parts", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tokenizer_is_one_line(rewrite: Any, tmp_path: Path) -> None:
    source = rewrite("transformers5")
    (source / "tokenizer.json").unlink()
    with pytest.raises(DyCokeError, match="holds no tokenizer"):
        export_parts(open_checkpoint(source), tmp_path / "parts", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DyCokeError, match=r"file/parts: cannot be written \(File exists\)"):
        export_parts(checkpoint, tmp_path / "file" / "parts", CONFIG)
