"""Manifests, records and files: what is broken is named in one line, writes are all or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.bundle.atomic import atomic_directory, atomic_write
from dycoke_trt.bundle.files import describe_parts, open_bundle
from dycoke_trt.bundle.manifest import Manifest, read_manifest
from dycoke_trt.bundle.paths import MANIFEST
from dycoke_trt.bundle.record import EngineRecord, read_record, write_record
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import CLIPS_DIR, MODEL_DIR
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime.pipeline import Pipeline

BUNDLE_0_1_0 = Path(__file__).parents[1] / "data" / "bundle-0.1.0"


def values(parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "exporter": "test",
        "source": {"format": "hf", "revision": "0" * 64},
        "dycoke": DyCokeConfig(k=0.5).to_dict(),
        "vision": {
            "image_size": 32, "tokens_per_frame": 10, "dtype": "float32", "max_frames": 20,
        },
        "llm": {
            "layers": 4, "hidden": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "vocab": 99,
            "max_positions": 128, "dtype": "float32", "tp": 1,
        },
        "template": {
            "prefix": "a", "middle": "b", "suffix": "c", "text_prefix": "a", "span_start": 1,
        },
        "visual_token_base": 99,
        "end_ids": [2],
        "pad_id": 0,
        "parts": parts,
    }  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    (root / "llm").mkdir(parents=True)
    (root / "vision_ttm.onnx").write_bytes(b"graph")
    (root / "llm" / "rank0.safetensors").write_bytes(b"weights")
    (root / "engines" / "cpu").mkdir(parents=True)
    (root / "engines" / "cpu" / "plan").write_bytes(b"not a part")
    parts = {name: part.model_dump() for name, part in describe_parts(root).items()}
    manifest = Manifest.model_validate(values(parts))
    (root / MANIFEST).write_text(manifest.model_dump_json())
    return root


def test_round_trip_and_checks(bundle: Path) -> None:
    manifest = open_bundle(bundle, hashes=True)
    assert set(manifest.parts) == {"vision_ttm.onnx", "llm/rank0.safetensors"}
    assert manifest.config == DyCokeConfig(k=0.5)
    again = Manifest.model_validate_json(manifest.model_dump_json())
    assert again.model_dump() == manifest.model_dump()
    assert again.identity == manifest.identity


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(bundle: Path) -> None:
        raw = json.loads((bundle / MANIFEST).read_text())
        change(raw)
        (bundle / MANIFEST).write_text(json.dumps(raw))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / MANIFEST).unlink(), "no bundle; run: dycoke export"),
        (lambda b: (b / MANIFEST).write_text("{"), "not readable"),
        (lambda b: (b / MANIFEST).write_bytes(b"\xff\xfe"), "not readable"),
        (lambda b: (b / MANIFEST).write_text("[1]"), "schema version None"),
        (edit(lambda raw: raw.update(schema_version=2)), "schema version 2, this release reads 1"),
        (edit(lambda raw: raw.pop("pad_id")), "pad_id"),
        (edit(lambda raw: raw.update(extra=1)), "extra"),
        (edit(lambda raw: raw["dycoke"].update(k=1.5)), "k=1.5"),
        (edit(lambda raw: raw["llm"].update(tp=0)), "llm.tp"),
        (edit(lambda raw: raw.update(end_ids=[])), "end_ids"),
        (lambda b: (b / "vision_ttm.onnx").unlink(), "vision_ttm.onnx is missing"),
        (lambda b: (b / "vision_ttm.onnx").write_bytes(b"grap"), "has 4 bytes, bundle.json says 5"),
        (lambda b: (b / "vision_ttm.onnx").write_bytes(b"grapH"), "sha256"),
    ],
)
def test_damage_is_named_in_one_line(bundle: Path, damage: Any, message: str) -> None:
    damage(bundle)
    with pytest.raises(DyCokeError) as error:
        open_bundle(bundle, hashes=True)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_changed_byte_is_found_by_hashes_alone(bundle: Path) -> None:
    (bundle / "vision_ttm.onnx").write_bytes(b"grapH")
    open_bundle(bundle)
    with pytest.raises(DyCokeError, match="sha256"):
        open_bundle(bundle, hashes=True)


@pytest.mark.parametrize(
    ("frames", "nearest"), [(0, 4), (3, 4), (6, 8), (7, 8), (19, 20), (24, 20)]
)
def test_wrong_frame_counts_name_the_nearest(bundle: Path, frames: int, nearest: int) -> None:
    manifest = read_manifest(bundle)
    with pytest.raises(DyCokeError, match=rf"{frames} frames.*nearest is {nearest}$"):
        manifest.visual_tokens(frames)
    assert manifest.visual_tokens(8) == 2 * (10 + 3 * 5) + 1


def record(bundle: Path, **changes: Any) -> EngineRecord:
    base = {
        "target": "cpu", "bundle_hash": read_manifest(bundle).identity, "backend": "native",
        "tokens_per_block": 8, "kv_tokens": 64, "max_batch": 2, "versions": {"torch": "2"},
    }  # fmt: skip
    return EngineRecord.model_validate({**base, **changes})


def test_records(bundle: Path) -> None:
    manifest, engine = read_manifest(bundle), bundle / "engines" / "cpu"
    with pytest.raises(DyCokeError, match=r"nothing was built.*dycoke build .* --target cpu"):
        read_record(engine, manifest, bundle)
    written = record(bundle)
    write_record(engine, written)
    assert read_record(engine, manifest, bundle) == written
    write_record(engine, record(bundle, bundle_hash="1" * 64))
    with pytest.raises(DyCokeError, match=r"bundle 111111111111, this one is .* run: dycoke build"):
        read_record(engine, manifest, bundle)
    (engine / "record.json").write_text('{"target": 1}')
    with pytest.raises(DyCokeError, match="run: dycoke build"):
        read_record(engine, manifest, bundle)


def test_engines_do_not_change_the_identity_of_a_bundle(bundle: Path) -> None:
    before = read_manifest(bundle).identity
    write_record(bundle / "engines" / "cpu", record(bundle))
    assert describe_parts(bundle) == read_manifest(bundle).parts
    assert read_manifest(bundle).identity == before


def test_a_bundle_of_the_first_release_still_serves() -> None:
    """Written by 0.1.0, whose graph holds its weights and whose manifest has no `tower`."""
    manifest = open_bundle(BUNDLE_0_1_0, hashes=True)
    record = read_record(BUNDLE_0_1_0 / "engines" / "cpu", manifest, BUNDLE_0_1_0)
    assert record.versions["dycoke-trt"] == "0.1.0"
    assert record.bundle_hash.startswith("ba9b43bb20ec")
    assert manifest.exporter == "dycoke-trt 0.1.0"
    assert manifest.vision.tower is None
    pipeline = Pipeline.from_record(BUNDLE_0_1_0)
    frames = pipeline.read(CLIPS_DIR / "describe.mp4", 16)
    answer = pipeline.ask(frames, "What appears first?", max_tokens=8)
    assert answer.text == " turns"  # as 0.1.0 answered


def test_identity_is_of_what_the_file_says(bundle: Path) -> None:
    before = read_manifest(bundle).identity
    path = bundle / MANIFEST
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said, indent=7))
    assert read_manifest(bundle).identity == before
    said["source"]["revision"] = "another"
    path.write_text(json.dumps(said))
    assert read_manifest(bundle).identity != before


def test_a_failed_write_leaves_nothing(tmp_path: Path, bundle: Path) -> None:
    def fail_half_way() -> None:
        with atomic_directory(tmp_path / "new" / "bundle") as work:
            (work / "half").write_text("written")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert list((tmp_path / "new").iterdir()) == []

    with pytest.raises(RuntimeError, match="stop"), atomic_directory(bundle, replace=True):
        raise RuntimeError("stop")
    open_bundle(bundle, hashes=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "new"]


def test_only_an_old_bundle_is_replaced(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(DyCokeError, match="exists already"), atomic_directory(bundle):
        pass
    with atomic_directory(bundle, replace=True) as work:
        (work / MANIFEST).write_text("{}")
    assert [p.name for p in bundle.iterdir()] == [MANIFEST]
    other = tmp_path / "photos"
    other.mkdir()
    with atomic_directory(other):
        pass  # an empty directory is no loss
    (other / "a.jpg").touch()
    with pytest.raises(DyCokeError, match="exists already"), atomic_directory(other):
        pass
    for replace, remedy in ((False, "another directory$"), (True, "another directory$")):
        with pytest.raises(DyCokeError, match=remedy):
            export_bundle(MODEL_DIR, other, DyCokeConfig(), replace=replace)
    assert [p.name for p in other.iterdir()] == ["a.jpg"]
    with pytest.raises(DyCokeError, match="use --force to replace the old bundle"):
        export_bundle(MODEL_DIR, bundle, DyCokeConfig())


def test_readers_see_a_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "record.json"
    atomic_write(path, "old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


def test_memory_and_order_are_read_and_their_absence_is_the_paper(bundle: Path) -> None:
    path = bundle / "bundle.json"
    said = json.loads(path.read_text())
    chosen = {"memory": 0.5, "order": "importance"}
    path.write_text(json.dumps(said | {"dycoke": said["dycoke"] | chosen}))
    assert read_manifest(bundle).config == DyCokeConfig.from_dict(said["dycoke"] | chosen)
    path.write_text(json.dumps(said))
    config = read_manifest(bundle).config
    assert (config.memory, config.order) == (0, "raster")
