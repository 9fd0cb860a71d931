from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.arch.spec import PixelScale
from dycoke_trt.bundle import files
from dycoke_trt.bundle.files import open_bundle
from dycoke_trt.bundle.llm_reader import read_llm
from dycoke_trt.bundle.manifest import Manifest, Source, read_manifest
from dycoke_trt.bundle.paths import MANIFEST
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.export.checkpoint import Checkpoint, open_checkpoint

CONFIG = DyCokeConfig(l=1)


def files_in(directory: Path) -> list[str]:
    present = (p for p in directory.rglob("*") if p.is_file())
    return sorted(p.relative_to(directory).as_posix() for p in present)


def export(checkpoint: Checkpoint, target: Path, **options: Any) -> Manifest:
    return export_bundle(checkpoint.directory, target, options.pop("config", CONFIG), **options)


def test_the_manifest_says_what_the_checkpoint_is(checkpoint: Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    manifest = export(checkpoint, target, dtype="bfloat16", tp=2)
    assert [*manifest.parts, MANIFEST] == sorted(files_in(target), key=lambda n: (n == MANIFEST, n))
    assert list(manifest.parts) == [
        "llm/config.json",
        "llm/rank0.safetensors",
        "llm/rank1.safetensors",
        "tokenizer/chat_template.jinja",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "vision.safetensors",
        "vision_ttm.onnx",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    written = read_manifest(target)
    assert written.model_dump() == manifest.model_dump()
    assert written.identity == manifest.identity
    assert manifest.source == Source(format=checkpoint.kind, revision=checkpoint.revision)
    assert manifest.visual_token_base == 103 == read_llm(target / "llm").visual_token_base
    assert manifest.visual_tokens(8) == 2 * (16 + 3 * 4) + 1
    assert (manifest.arch, manifest.vision.newline) == ("llava-onevision-qwen2", "one_token")
    assert (manifest.end_ids, manifest.pad_id, manifest.vision.image_size) == ([7], 7, 101)
    assert manifest.tower() == (checkpoint.vision, PixelScale())
    template = manifest.template
    assert (template.prefix, template.middle, template.span_start) == ("user ", ": ", 1)


def test_weights_are_hashed_while_they_are_written(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is hashed twice, and none of weights is read back for it."""
    read: list[str] = []
    digest = files.sha256

    def counted(path: Path) -> str:
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(files, "sha256", counted)
    manifest = export(checkpoint, tmp_path / "bundle", tp=2)
    assert sorted(read) == sorted(
        Path(name).name for name in manifest.parts if not name.endswith(".safetensors")
    )
    monkeypatch.undo()
    open_bundle(tmp_path / "bundle", hashes=True)


@pytest.mark.parametrize(
    ("config", "tp", "message"),
    [
        (CONFIG, 3, "tp=3 is impossible"),
        (DyCokeConfig.paper(), 1, "leaves nothing to prune"),
        (DyCokeConfig.reference().with_changes(l=1), 1, "ttm='reference' cannot be exported"),
    ],
)
def test_a_refusal_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, config: DyCokeConfig, tp: int, message: str
) -> None:
    with pytest.raises(DyCokeError, match=message):
        export(checkpoint, tmp_path / "parts", config=config, dtype="float32", tp=tp)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "chunks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, tmp_path / "parts")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tokenizer_is_one_line(rewrite: Any, tmp_path: Path) -> None:
    source = rewrite("transformers5")
    (source / "tokenizer.json").unlink()
    with pytest.raises(DyCokeError, match="holds no tokenizer"):
        export(open_checkpoint(source), tmp_path / "parts")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DyCokeError, match=r"file/parts: cannot be written \(File exists\)"):
        export(checkpoint, tmp_path / "file" / "parts")


@pytest.mark.parametrize("tp", [1, 2])
def test_weights_that_the_dtype_cannot_hold_leave_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tp: int
) -> None:
    original = Checkpoint.chunks

    def huge(self: Checkpoint, name: str, *args: Any) -> Any:
        scale = 1e6 if "layers.1.mlp.down_proj" in name else 1
        return (chunk * scale for chunk in original(self, name, *args))

    monkeypatch.setattr(Checkpoint, "chunks", huge)
    with pytest.raises(
        DyCokeError, match=r"layers.1.mlp.proj.weight is not finite in torch.float16"
    ):
        export(checkpoint, tmp_path / "bundle", dtype="float16", tp=tp)
    assert list(tmp_path.iterdir()) == []
