"""The vision step in torch against the graph in ONNX Runtime, from the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.export.checkpoint import open_checkpoint
from dycoke_trt.export.vision import export_vision
from dycoke_trt.runtime.onnx_weights import read_onnx
from dycoke_trt.runtime.vision import FILE, OnnxVision
from dycoke_trt.runtime.vision_torch import TorchVision


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drift = torch.randn(2, 8, 3, 12, 12, generator=generator).cumsum(1)
    video = torch.nn.functional.interpolate(drift.flatten(0, 1), size=(96, 96), mode="bilinear")
    return ((video.view(2, 8, 3, 96, 96).sigmoid()) * 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("dtype", "external", "config"),
    [
        ("fp32", 0, DyCokeConfig()),  # weights in their own file
        ("fp32", 1 << 30, DyCokeConfig.off()),
        ("fp16", 1 << 30, DyCokeConfig(k=0.5)),
    ],
)
def test_torch_equals_onnx_runtime(
    tmp_path: Path, frames: torch.Tensor, dtype: str, external: int, config: DyCokeConfig
) -> None:
    checkpoint = open_checkpoint(MODEL_DIR)
    export_vision(checkpoint, tmp_path / FILE, config, dtype, external_bytes=external)
    expected = OnnxVision(tmp_path)(frames)
    got = TorchVision.from_bundle(tmp_path, "cpu")(frames)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    scale = float(expected.abs().max())
    difference = (got.float() - expected.float()).abs().amax(-1) / scale
    # With fp16 TTM may cut between two nearly equal tokens: then rows differ, not all of them.
    assert (difference < (1e-4 if dtype == "fp32" else 2e-2)).float().mean() > (
        0.999 if dtype == "fp32" else 0.9
    )


def test_the_reader_agrees_with_onnx(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / FILE
    export_vision(open_checkpoint(MODEL_DIR), path, DyCokeConfig(), "bf16")
    file, model = read_onnx(path), onnx.load(path)
    assert file.properties == {entry.key: entry.value for entry in model.metadata_props}
    assert set(file.tensors) == {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        mine = file.tensors[tensor.name]
        assert list(mine.shape) == list(tensor.dims)
        if tensor.HasField("raw_data"):
            assert mine.flatten().view(torch.uint8).numpy().tobytes() == tensor.raw_data


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x3a\x7f", b""])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DyCokeError, match="export again"):
        TorchVision.from_bundle(tmp_path, "cpu")
