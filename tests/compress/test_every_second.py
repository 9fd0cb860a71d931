"""A compressor of one file: it keeps every second token of each frame. Exported, counted, run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from dycoke_trt.bundle.files import open_bundle
from dycoke_trt.compress.base import COMPRESSORS, compressor_of, register, survivor_count
from dycoke_trt.core.config import TTM_MODES, DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import CLIPS_DIR, MODEL_DIR
from dycoke_trt.engines.cpu import build_cpu
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime.pipeline import Pipeline
from dycoke_trt.runtime.vision import OnnxVision
from dycoke_trt.runtime.vision_torch import TorchVision


@dataclass(frozen=True)
class EverySecond:
    tokens: int

    @property
    def kept(self) -> tuple[int, ...]:
        return ((self.tokens + 1) // 2,)

    def survivors(self, features: torch.Tensor) -> torch.Tensor:
        videos, frames, tokens, _ = features.shape
        start = torch.arange(frames, device=features.device)[:, None] * tokens
        rows = start + torch.arange(0, tokens, 2, device=features.device)
        return rows.flatten().expand(videos, -1)


@pytest.fixture(scope="module")
def config() -> Iterator[DyCokeConfig]:
    register("every_second")(lambda _config, tokens: EverySecond(tokens))
    yield DyCokeConfig(ttm="every_second")
    del COMPRESSORS["every_second"]
    TTM_MODES.remove("every_second")


def test_it_is_exported_counted_and_asked(config: DyCokeConfig, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export_bundle(MODEL_DIR, bundle, config, dtype="float32", max_frames=16)
    assert open_bundle(bundle).visual_tokens(8) == 8 * 18 + 1
    assert survivor_count(7, 35, config) == 7 * 18
    side = open_bundle(bundle).vision.image_size
    frames = torch.randint(0, 256, (2, 8, 3, side, side), dtype=torch.uint8)
    model = TorchVision.from_bundle(bundle, "cpu").model
    features = model.features(frames.flatten(0, 1)).view(2, 8, 36, -1)
    wanted = features[:, :, ::2].flatten(1, 2)
    found = OnnxVision(bundle)(frames)
    torch.testing.assert_close(found[:, :-1], wanted, rtol=0, atol=2e-4)
    build_cpu(bundle, kv_tokens=1024, tokens_per_block=8, max_batch=1)
    pipeline = Pipeline.from_record(bundle)
    clip = pipeline.read(CLIPS_DIR / "describe.mp4", 8)
    assert pipeline.ask(clip, "What appears first?", max_tokens=4).text


def test_what_is_not_registered_is_refused() -> None:
    with pytest.raises(DyCokeError, match=r"ttm='every_third' is not allowed; allowed: paper"):
        DyCokeConfig(ttm="every_third")
    with pytest.raises(DyCokeError, match=r"ttm='random' cannot be exported; allowed: off, paper"):
        compressor_of(DyCokeConfig(ttm="random"), 36)
