"""The vision step on an engine: the runner around a stand-in, and its names in NVIDIA's library."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.engines import tensorrt_library
from dycoke_trt.engines.tensorrt_library import TENSORRT, LoadedLibrary
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime import vision_engine
from dycoke_trt.runtime.vision import OnnxVision
from dycoke_trt.runtime.vision_engine import EngineVision
from dycoke_trt.runtime.vision_torch import TorchVision
from dycoke_trt.tests.support import demo_bundle
from dycoke_trt.tests.tensorrt_standin.plan import FOLDER, plan_bytes
from dycoke_trt.verify.vision_plan import synthetic_frames

AGAIN = "run: dycoke build B --target h100"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> LoadedLibrary:
    """The stand-in as TensorRT, in the memory of this CPU."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(vision_engine, "find_gpu", lambda: torch.device("cpu"))
    tensorrt_library._load.cache_clear()
    loaded = TENSORRT.load()
    monkeypatch.delitem(sys.modules, "tensorrt")
    tensorrt_library._load.cache_clear()
    return loaded


def engine(bundle: Path, folder: Path, library: LoadedLibrary) -> EngineVision:
    path = folder / "vision_ttm.plan"
    path.write_bytes(plan_bytes(bundle))
    return EngineVision(path, library, again=AGAIN)


def clip(bundle: Path, frames: int) -> torch.Tensor:
    return torch.from_numpy(synthetic_frames(frames, read_manifest(bundle).vision.image_size))


def test_every_number_of_frames_runs_in_its_profile(tmp_path: Path, library: LoadedLibrary) -> None:
    bundle = demo_bundle(DyCokeConfig())
    vision, expected = engine(bundle, tmp_path, library), OnnxVision(bundle, 1)
    for frames in (8, 12, 32, 4):
        given = clip(bundle, frames)
        assert torch.equal(vision(given), expected(given))
    calls = vision._context.calls
    assert calls == ["run", "profile 1", "run", "run", "profile 0", "run"]


def test_bfloat16_comes_out_as_torch_has_it(tmp_path: Path, library: LoadedLibrary) -> None:
    bundle = tmp_path / "bundle"
    export_bundle(MODEL_DIR, bundle, DyCokeConfig(), dtype="bfloat16", max_frames=8)
    given = clip(bundle, 8)
    found = engine(bundle, tmp_path, library)(given)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, TorchVision.from_bundle(bundle, "cpu")(given))


def test_frames_that_do_not_lie_in_one_piece(tmp_path: Path, library: LoadedLibrary) -> None:
    bundle = demo_bundle(DyCokeConfig())
    given = clip(bundle, 8)
    spread = given.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not spread.is_contiguous()
    assert torch.equal(engine(bundle, tmp_path, library)(spread), OnnxVision(bundle, 1)(given))


def test_a_shape_that_no_profile_has(tmp_path: Path, library: LoadedLibrary) -> None:
    bundle = demo_bundle(DyCokeConfig())
    vision = engine(bundle, tmp_path, library)
    for shape in ((1, 36, 3, 96, 96), (1, 8, 3, 64, 64), (2, 8, 3, 96, 96), (8, 3, 96, 96)):
        with pytest.raises(DyCokeError, match="--max-frames") as caught:
            vision(torch.zeros(shape, dtype=torch.uint8))
        assert str(shape) in str(caught.value)
        assert "(1, 4, 3, 96, 96) to (1, 8, 3, 96, 96)" in str(caught.value)
    assert vision._context.calls == []


def test_what_the_library_refuses_is_one_line_with_its_reason(
    tmp_path: Path, library: LoadedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vision_ttm.plan"
    path.write_bytes(b"of another release")
    with pytest.raises(DyCokeError) as caught:
        EngineVision(path, library, again=AGAIN)
    assert str(caught.value) == (
        f"{path}: TensorRT 10.14.1.48 cannot load it; {AGAIN} "
        "(IRuntime::deserializeCudaEngine: Error Code 1: bad magic tag)"
    )
    path.write_bytes(b"")
    with pytest.raises(DyCokeError, match="cannot be read"):
        EngineVision(path, library, again=AGAIN)
    bundle = demo_bundle(DyCokeConfig())
    vision = engine(bundle, tmp_path, library)
    monkeypatch.setattr(vision, "_profile_of", lambda _: 0)
    with pytest.raises(DyCokeError, match=r"failed on frames \[1, 12.*outside of profile 0"):
        vision(clip(bundle, 12))


def test_what_is_not_installed_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tensorrt_library.Library("x", "TensorRT X", ("tensorrt_x",), (), "run: pip install x")
    with pytest.raises(DyCokeError, match="TensorRT X is not installed; run: pip install x"):
        absent.load()
    assert (absent.version, absent.is_installed) == (None, False)
    (tmp_path / "tensorrt_x.py").write_text("raise OSError('libnvinfer.so.10: no such file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DyCokeError, match=r"X cannot be imported \(libnvinfer"):
        absent.load()
