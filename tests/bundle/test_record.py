"""Engines of another GPU, TensorRT, plugin or bundle, and damaged ones, are refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.bundle.files import describe_parts
from dycoke_trt.bundle.manifest import Manifest, read_manifest
from dycoke_trt.bundle.record import (
    EngineRecord,
    Installed,
    read_record,
    write_record,
)
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.tests.support import demo_bundle

HERE = Installed(sm=90, tensorrt="10.14.1.48", tensorrt_llm="1.2.1", plugin_abi=1)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(demo_bundle(DyCokeConfig()))


@pytest.fixture
def engine(tmp_path: Path, manifest: Manifest) -> Path:
    folder = tmp_path / "h100"
    (folder / "llm").mkdir(parents=True)
    (folder / "llm" / "rank0.engine").write_bytes(b"engine" * 1000)
    (folder / "vision_ttm.plan").write_bytes(b"plan" * 1000)
    write(folder, manifest)
    return folder


def write(folder: Path, manifest: Manifest, **changes: Any) -> None:
    fields = {
        "target": "h100", "bundle_hash": manifest.identity, "backend": "trtllm",
        "tokens_per_block": 32, "kv_tokens": 3200, "max_batch": 2, "versions": {},
        "sm": 90, "tensorrt": "10.14.1.48", "tensorrt_llm": "1.2.1", "plugin_abi": 1,
        "files": describe_parts(folder),
    }  # fmt: skip
    write_record(folder, EngineRecord.model_validate({**fields, **changes}))


def test_a_matching_engine_is_taken(engine: Path, manifest: Manifest) -> None:
    record = read_record(engine, manifest, Path("B"), installed=HERE, hashes=True)
    assert set(record.files) == {"llm/rank0.engine", "vision_ttm.plan"}
    assert read_record(engine, manifest, Path("B")) == record  # nothing known, nothing compared


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sm": 89}, "built for GPU architecture sm_89, here it is sm_90"),
        ({"tensorrt": "10.9.0.34"}, "built for TensorRT 10.9.0.34, here it is 10.14.1.48"),
        ({"tensorrt_llm": "1.1.0"}, "built for TensorRT-LLM 1.1.0, here it is 1.2.1"),
        ({"plugin_abi": 2}, "built for plugin ABI 2, here it is 1"),
        ({"bundle_hash": "0" * 64}, "built from bundle 000000000000, this one is "),
    ],
)
def test_mismatches(
    engine: Path, manifest: Manifest, changes: dict[str, Any], message: str
) -> None:
    """Refused without a look at the engines, whose gigabytes would take more than a second."""
    write(engine, manifest, **changes)
    for name in ("llm/rank0.engine", "vision_ttm.plan"):
        (engine / name).unlink()  # were they looked at first, this would be the complaint
    with pytest.raises(DyCokeError) as caught:
        read_record(engine, manifest, Path("B"), installed=HERE)
    assert message in str(caught.value)
    assert "run: dycoke build B --target h100" in str(caught.value)


@pytest.mark.parametrize("name", ["llm/rank0.engine", "vision_ttm.plan"])
def test_truncated_and_missing_files(engine: Path, manifest: Manifest, name: str) -> None:
    path = engine / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DyCokeError, match=rf"has {len(whole) - 1} bytes.*says {len(whole)}"):
        read_record(engine, manifest, Path("B"), installed=HERE)
    path.unlink()
    with pytest.raises(DyCokeError, match="is missing; run: dycoke build"):
        read_record(engine, manifest, Path("B"), installed=HERE)


def test_a_changed_byte_is_found_by_its_hash(engine: Path, manifest: Manifest) -> None:
    path = engine / "vision_ttm.plan"
    path.write_bytes(b"Plan" + path.read_bytes()[4:])
    read_record(engine, manifest, Path("B"), installed=HERE)
    with pytest.raises(DyCokeError, match="sha256"):
        read_record(engine, manifest, Path("B"), hashes=True)
