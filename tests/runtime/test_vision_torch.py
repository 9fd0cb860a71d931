"""The vision step in torch against the graph in ONNX Runtime, from one bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dycoke_trt.bundle.paths import VISION_WEIGHTS
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime.vision import OnnxVision
from dycoke_trt.runtime.vision_torch import TorchVision

BUNDLE_0_1_0 = Path(__file__).parents[1] / "data" / "bundle-0.1.0"


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drift = torch.randn(2, 8, 3, 12, 12, generator=generator).cumsum(1)
    video = torch.nn.functional.interpolate(drift.flatten(0, 1), size=(96, 96), mode="bilinear")
    return ((video.view(2, 8, 3, 96, 96).sigmoid()) * 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("dtype", "config"),
    [
        ("float32", DyCokeConfig()),
        ("float32", DyCokeConfig.off()),
        ("float16", DyCokeConfig(k=0.5)),
    ],
)
def test_torch_equals_onnx_runtime(
    tmp_path: Path, frames: torch.Tensor, dtype: str, config: DyCokeConfig
) -> None:
    export_bundle(MODEL_DIR, tmp_path / "b", config, dtype=dtype)
    expected = OnnxVision(tmp_path / "b")(frames)
    got = TorchVision.from_bundle(tmp_path / "b", "cpu")(frames)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    scale = float(expected.abs().max())
    difference = (got.float() - expected.float()).abs().amax(-1) / scale
    # With fp16 TTM may cut between two nearly equal tokens: then rows differ, not all of them.
    assert (difference < (1e-4 if dtype == "float32" else 2e-2)).float().mean() > (
        0.999 if dtype == "float32" else 0.9
    )


@pytest.mark.parametrize("damage", ["missing", "truncated", "of another tower", "not safetensors"])
def test_weights_that_do_not_fit_are_one_line(tmp_path: Path, damage: str) -> None:
    export_bundle(MODEL_DIR, tmp_path / "b", DyCokeConfig(), dtype="float32")
    path = tmp_path / "b" / VISION_WEIGHTS
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "of another tower":  # as long as the manifest says
        path.write_bytes(content.replace(b"tower.layers.3", b"tower.layers.7"))
    else:
        path.write_bytes(b"\xff" * len(content))
    with pytest.raises(DyCokeError, match=r"vision.safetensors.*export again") as refused:
        TorchVision.from_bundle(tmp_path / "b", "cpu")
    assert "\n" not in str(refused.value)


def test_a_bundle_of_the_first_release_is_refused_on_a_gpu() -> None:
    with pytest.raises(DyCokeError, match=r"holds no weights of its vision tower.*export again"):
        TorchVision.from_bundle(BUNDLE_0_1_0, "cpu")
