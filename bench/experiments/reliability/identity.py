"""Test 11: with nothing to prune, the path that prunes gives the tokens of the plain one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ....core.config import DyCokeConfig
from ....demo import MODEL_DIR
from ....export.bundle import export_bundle
from ....runtime.pipeline import Pipeline
from . import canary
from .outcome import Outcome
from .stage import Stage

CRITERION = "K = 0 and P = 0: embeddings and tokens identical to no TTM and no pruning at all"


def run(stage: Stage, quick: bool) -> Outcome:  # noqa: ARG001 (on the embedded model, whose source is here)
    settings = [
        DyCokeConfig(k=0.0, p=0.0, l=layer, gate=gate)
        for layer in (0, 2)
        for gate in ("reuse", "full", "always", "once")
    ]
    videos = [torch.from_numpy(canary.video(seed, 8)[0]) for seed in range(2 if quick else 10)]
    with TemporaryDirectory(prefix="dycoke-identity-") as folder:
        plain = _pipeline(Path(folder) / "plain", DyCokeConfig.off())
        bundle = Path(folder) / "empty"
        pruned = [_pipeline(bundle, config) for config in settings]
        embeddings = sum(
            not torch.equal(plain.embed_video(video), pruned[0].embed_video(video))
            for video in videos
        )
        wanted = [plain.ask(video, "What happens?", max_tokens=24).tokens for video in videos]
        different = sum(
            pipeline.ask(video, "What happens?", max_tokens=24).tokens != tokens
            for pipeline in pruned
            for video, tokens in zip(videos, wanted, strict=True)
        )
    figures: dict[str, Any] = {
        "settings": len(settings),
        "videos": len(videos),
        "embeddings different": embeddings,
        "answers different": different,
    }
    return Outcome(
        not embeddings and not different,
        figures,
        needs_gpu="the device kernels: pytest -m gpu tests/kernels/device",
    )


def _pipeline(bundle: Path, config: DyCokeConfig) -> Pipeline:
    if not bundle.exists():
        export_bundle(MODEL_DIR, bundle, config, dtype="float32", max_frames=16)
    return Pipeline(bundle, kv_tokens=2048, config=config, keep_steps=False)
