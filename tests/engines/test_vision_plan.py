"""The vision plan: its profiles and options here; the plan itself where TensorRT is (-m trt)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.bundle.paths import VISION_PLAN
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.engines.vision_plan import build_vision_plan, config_options, profile_ranges
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime.nvidia_smi import visible_gpus
from dycoke_trt.runtime.tensorrt_library import TENSORRT
from dycoke_trt.runtime.vision import OnnxVision
from dycoke_trt.runtime.vision_engine import EngineVision
from dycoke_trt.tests.support import demo_bundle
from dycoke_trt.verify.vision_plan import (
    BOUNDS,
    SHARES,
    check_vision_engine,
    reference_vision,
    relative_difference,
    synthetic_frames,
)
from numpy.typing import NDArray

Frames: TypeAlias = NDArray[Any]
Rows: TypeAlias = NDArray[np.float32]

needs_tensorrt = pytest.mark.skipif(
    find_spec("tensorrt") is None or not visible_gpus(), reason="needs a GPU and TensorRT"
)


@pytest.mark.parametrize("most", [4, 8, 12, 32, 36, 64, 128])
def test_profiles_cover_every_frame_count_once(most: int) -> None:
    ranges = profile_ranges(384, most, max_batch=2)
    covered = [n for r in ranges for n in range(r.least[1], r.most[1] + 1, 4)]
    assert covered == list(range(4, most + 1, 4))
    for r in ranges:
        assert r.least[0] == r.best[0] == 1
        assert r.most[0] == 2
        assert r.best[1] == r.most[1]
        assert r.least[2:] == r.best[2:] == r.most[2:] == (3, 384, 384)


def test_impossible_profiles() -> None:
    for frames, batch, message in ((6, 1, "max_frames=6"), (0, 1, "max_frames=0"), (8, 0, "max_b")):
        with pytest.raises(DyCokeError, match=message):
            profile_ranges(384, frames, batch)


def test_options_name_no_precision(tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    options = config_options([], cache, memory_pool="workspace")
    assert options == {"profiles": [], "memory_pool_limits": {"workspace": 4 * 2**30}}
    cache.write_bytes(b"x")
    assert config_options([], cache, memory_pool="w")["load_timing_cache"] == str(cache)


def test_polygraphy_takes_what_we_pass() -> None:
    """Its own classes, which check arguments before TensorRT is imported."""
    from inspect import signature

    from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxPath, Profile

    assert "strongly_typed" in signature(NetworkFromOnnxPath.__init__).parameters
    assert "save_timing_cache" in signature(EngineBytesFromNetwork.__init__).parameters
    r = profile_ranges(384, 8)[0]
    profile = Profile().add("frames", min=r.least, opt=r.best, max=r.most)
    assert tuple(profile["frames"].opt) == (1, 8, 3, 384, 384)


def test_differences_ignore_a_swapped_token_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((1, 200, 64)).astype(np.float32)
    assert relative_difference(rows, rows) == 0
    swapped = rows.copy()
    swapped[0, 7] = random.standard_normal(64)
    assert relative_difference(swapped, rows) == 0
    moved = rows.copy()  # another token instead of row 50: those up to row 60 move
    moved[0, 50:60], moved[0, 60] = rows[0, 51:61], random.standard_normal(64)
    assert relative_difference(moved, rows) == 0
    assert relative_difference(np.roll(rows, 5, axis=1), rows) == float("inf")
    assert relative_difference(rows[:, ::-1], rows) == float("inf")
    assert relative_difference(rows[:, :-1], rows) == float("inf")
    assert relative_difference(np.full_like(rows, np.nan), rows) == float("inf")
    assert 0 < relative_difference(rows * 1.01, rows) < 0.02
    clip = synthetic_frames(8, 28)
    assert clip.shape == (1, 8, 3, 28, 28)
    assert clip.dtype == np.dtype(np.uint8)


def test_what_the_plan_is_compared_with(tmp_path: Path) -> None:
    """ONNX Runtime, and torch for bfloat16, which it does not hand out: they agree on the CPU."""
    bundle = tmp_path / "bundle"
    export_bundle(MODEL_DIR, bundle, DyCokeConfig(), dtype="bfloat16", max_frames=4)
    clip = synthetic_frames(4, read_manifest(bundle).vision.image_size)
    exact = reference_vision(demo_bundle(DyCokeConfig()), Dtype.FP32, "cpu")(clip)
    rounded = reference_vision(bundle, Dtype.BF16, "cpu")(clip)
    assert rounded.dtype == np.float32
    measured = relative_difference(rounded, exact, SHARES[Dtype.BF16])
    assert 0 < measured < BOUNDS[Dtype.BF16]
    with pytest.raises(DyCokeError, match="no CUDAExecutionProvider here"):
        reference_vision(bundle, Dtype.FP16)


def test_the_comparison_finds_an_engine_that_is_wrong() -> None:
    """On a CPU, with ONNX Runtime in the engine's place: right, off by 1 %, and a profile of it."""
    bundle = demo_bundle(DyCokeConfig())
    manifest, right = read_manifest(bundle), OnnxVision(bundle, 1)

    def failures(vision: Callable[[torch.Tensor], torch.Tensor]) -> list[str]:
        checks = list(check_vision_engine(vision, bundle, manifest, "cpu"))
        assert [check.stage for check in checks] == [
            "vision engine, 8 frames", "vision engine, 32 frames"
        ]  # fmt: skip
        return [check.stage for check in checks if not check.passed]

    assert failures(right) == []
    assert len(failures(lambda frames: right(frames) * 1.01)) == 2
    wrong = failures(lambda frames: right(frames).flip(1) if frames.shape[1] > 8 else right(frames))
    assert wrong == ["vision engine, 32 frames"]


@pytest.mark.trt
@needs_tensorrt
@pytest.mark.parametrize("dtype", list(Dtype))
def test_the_plan_equals_the_graph(tmp_path: Path, dtype: Dtype) -> None:
    bundle = tmp_path / "bundle"
    export_bundle(MODEL_DIR, bundle, DyCokeConfig(), dtype=dtype, max_frames=32)
    manifest = read_manifest(bundle)
    build_vision_plan(bundle, manifest, tmp_path, tmp_path / "timing.cache")
    assert (tmp_path / "timing.cache").is_file()
    plan = EngineVision(tmp_path / VISION_PLAN, TENSORRT.load(), again="")
    checks = list(check_vision_engine(plan, bundle, manifest))
    assert [check for check in checks if not check.passed] == []


def in_onnxruntime(bundle: Path, _folder: Path, frames: Frames) -> Rows:
    return reference_vision(bundle, Dtype.FP32, "cpu")(frames)


def in_tensorrt(bundle: Path, folder: Path, frames: Frames) -> Rows:
    plan = build_vision_plan(bundle, read_manifest(bundle), folder, folder / "timing.cache")
    vision = EngineVision(plan, TENSORRT.load(), again="")
    return np.asarray(vision(torch.from_numpy(frames)).float().cpu())


@pytest.mark.parametrize(
    "run",
    [
        in_onnxruntime,  # whose order of ties is ONNX's, so that the test itself is tested
        pytest.param(in_tensorrt, marks=[pytest.mark.trt, needs_tensorrt]),
    ],
)
def test_equal_similarities_keep_the_lowest_index(
    tmp_path: Path, run: Callable[[Path, Path, Frames], Rows]
) -> None:
    """All frames alike: every similarity ties, so that TopK's tie order decides every row. A pruned
    frame keeps its first tokens then, and these are the first rows of the whole frame."""
    config = DyCokeConfig()
    bundle = demo_bundle(config)
    manifest = read_manifest(bundle)
    tokens = manifest.vision.tokens_per_frame
    still = synthetic_frames(1, manifest.vision.image_size)
    (found,) = run(bundle, tmp_path, np.repeat(still, 4, axis=1))
    kept = int((1 - config.k) * tokens)
    assert len(found) == tokens + 3 * kept + 1
    whole = found[:tokens]
    for frame in range(3):
        begin = tokens + frame * kept
        part = found[begin : begin + kept]
        nearest = np.linalg.norm(part[:, None] - whole[None], axis=-1).argmin(-1)
        assert nearest.tolist() == list(range(kept))
