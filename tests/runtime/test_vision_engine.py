"""The vision step on an engine: the runner around a stand-in, and its names in NVIDIA's library."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Iterator
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime import tensorrt_library, vision_engine
from dycoke_trt.runtime.tensorrt_library import TENSORRT, TENSORRT_RTX, LoadedLibrary
from dycoke_trt.runtime.vision import OnnxVision
from dycoke_trt.runtime.vision_engine import EngineVision
from dycoke_trt.runtime.vision_torch import TorchVision
from dycoke_trt.tests.support import demo_bundle
from dycoke_trt.tests.tensorrt_standin.plan import FOLDER, plan_bytes
from dycoke_trt.verify.vision_plan import synthetic_frames

AGAIN = "run: dycoke build B --target h100"
INSIDE = {"cache"}  # of the stand-ins, not of the library


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, LoadedLibrary]]:
    """The stand-ins as both libraries, in the memory of this CPU."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(vision_engine, "find_gpu", lambda: torch.device("cpu"))
    tensorrt_library._load.cache_clear()
    yield {library.title: library.load() for library in (TENSORRT, TENSORRT_RTX)}
    for module in ("tensorrt", "tensorrt_rtx"):
        del sys.modules[module]  # or other tests would take them for NVIDIA's
    tensorrt_library._load.cache_clear()


@pytest.fixture
def library(standins: dict[str, LoadedLibrary]) -> LoadedLibrary:
    return standins[TENSORRT.title]


@pytest.fixture
def rtx(standins: dict[str, LoadedLibrary]) -> LoadedLibrary:
    return standins[TENSORRT_RTX.title]


def engine(bundle: Path, folder: Path, library: LoadedLibrary, **options: Any) -> EngineVision:
    path = folder / "vision_ttm.plan"
    path.write_bytes(plan_bytes(bundle))
    return EngineVision(path, library, again=AGAIN, **options)


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
        f"{path}: TensorRT 10.14.1.48 cannot load it "
        f"(IRuntime::deserializeCudaEngine: Error Code 1: bad magic tag); {AGAIN}"
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
    absent = tensorrt_library.Library("TensorRT X", ("tensorrt_x",), (), "run: pip install x")
    with pytest.raises(DyCokeError, match="TensorRT X is not installed; run: pip install x"):
        absent.load()
    assert absent.version is None
    (tmp_path / "tensorrt_x.py").write_text("raise OSError('libnvinfer.so.10: no such file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DyCokeError, match=r"X cannot be imported \(libnvinfer"):
        absent.load()


def test_kernels_compiled_on_the_gpu_are_kept_beside_the_engine(
    tmp_path: Path, rtx: LoadedLibrary
) -> None:
    bundle, cache = demo_bundle(DyCokeConfig()), tmp_path / "vision_ttm.runtime-cache"
    vision = engine(bundle, tmp_path, rtx, runtime_cache=cache)
    expected = OnnxVision(bundle, 1)(clip(bundle, 8))
    assert torch.equal(vision(clip(bundle, 8)), expected)
    assert cache.read_bytes() == b"kernels:profile0"
    vision(clip(bundle, 32))
    assert cache.read_bytes() == b"kernels:profile0 profile1"
    assert [c for c in vision._context.calls if "compile" in c] == [
        "compile profile0", "compile profile1"
    ]  # fmt: skip

    again = engine(bundle, tmp_path, rtx, runtime_cache=cache)
    assert torch.equal(again(clip(bundle, 8)), expected)
    assert again._context.calls == ["run"]

    cache.write_bytes(b"of another GPU")  # as the library reports by False: compiled again
    other = engine(bundle, tmp_path, rtx, runtime_cache=cache)
    other(clip(bundle, 8))
    assert other._context.calls == ["compile profile0", "run"]
    assert cache.read_bytes() == b"kernels:profile0"


def test_an_engine_on_a_read_only_mount_runs_and_says_why_it_starts_slowly(
    tmp_path: Path, rtx: LoadedLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = demo_bundle(DyCokeConfig())
    vision = engine(bundle, tmp_path, rtx, runtime_cache=tmp_path / "none" / "cache")
    with caplog.at_level(logging.WARNING):
        vision(clip(bundle, 4))
    assert "the runtime cache is not kept" in caplog.text


def test_options_of_the_context(tmp_path: Path, rtx: LoadedLibrary) -> None:
    bundle = demo_bundle(DyCokeConfig())
    plain = engine(bundle, tmp_path, rtx)
    assert plain._context.config is None
    graph = engine(bundle, tmp_path, rtx, cuda_graph=True)
    assert graph._context.config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"


def test_a_stripped_engine_takes_its_weights_from_the_graph(
    tmp_path: Path, rtx: LoadedLibrary
) -> None:
    bundle = demo_bundle(DyCokeConfig())
    engine(bundle, tmp_path, rtx, refit=bundle / "vision_ttm.onnx")
    with pytest.raises(
        DyCokeError, match=r"cannot take the weights of .*none\.onnx .*dycoke build"
    ):
        engine(bundle, tmp_path, rtx, refit=bundle / "none.onnx")


def test_an_invalid_engine_is_refused_by_its_header(tmp_path: Path, rtx: LoadedLibrary) -> None:
    path = tmp_path / "vision_ttm.plan"
    path.write_bytes(b"old engine" * 100)
    with pytest.raises(DyCokeError, match=r"\(version mismatch, unsupported cc\); run: dycoke"):
        EngineVision(path, rtx, again=AGAIN)


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="needs TensorRT for RTX")
def test_nvidias_library_has_every_name_of_the_standin(standins: dict[str, LoadedLibrary]) -> None:
    """The runner uses nothing that the stand-ins do not have, so nothing that is not there."""
    import tensorrt_rtx_bindings as real

    checked = 0
    for loaded in standins.values():
        for name, kind in vars(loaded.trt).items():
            if not inspect.isclass(kind) or name in ("Any", "Path", "Enum"):
                continue
            theirs = getattr(real, name)
            mine = kind.__members__ if issubclass(kind, Enum) else vars(kind)
            for member in (m for m in mine if not m.startswith("_") and m not in INSIDE):
                assert hasattr(theirs, member), f"{name}.{member}"
                checked += 1
    assert checked > 30
