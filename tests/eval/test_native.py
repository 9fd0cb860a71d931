"""The oracle and the native backend on the demo model: the same answers, decisions, selections."""

from __future__ import annotations

from itertools import islice

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.demo.shapes import HELD_OUT_SEEDS, Sample, make_sample
from dycoke_trt.eval.native import NativeAnswerer
from dycoke_trt.eval.shapes import Answerer
from dycoke_trt.eval.study import Setting

BLOCK = 16


@pytest.fixture(scope="module")
def described() -> list[Sample]:
    """Two videos with long answers."""
    samples = (make_sample(seed) for seed in HELD_OUT_SEEDS)
    return list(islice((sample for sample in samples if sample.task == "describe"), 2))


@pytest.mark.parametrize(
    "config",
    [
        DyCokeConfig(memory=0.8, order="importance", gate="always"),
        DyCokeConfig(memory=0.5, order="importance", p=0.9),
        DyCokeConfig(order="importance", gate="full"),
        DyCokeConfig(memory=0.65),
        DyCokeConfig(memory=0.65, granularity="token", gate="always"),
    ],
    ids=lambda config: f"m{config.memory}-{config.order}-{config.gate}-{config.granularity}",
)
def test_memory_and_order(described: list[Sample], config: DyCokeConfig) -> None:
    setting = Setting(config, BLOCK if config.granularity == "block" else None)
    oracle, native = Answerer(MODEL_DIR), NativeAnswerer(MODEL_DIR, BLOCK)
    for sample in described:
        features = oracle.features(sample)
        expected, _ = oracle.generate(features, sample.question, setting)
        got, _ = native.generate(features, sample.question, setting)
        assert native.decode(got.tokens) == oracle.decode(expected.tokens)
        assert len(native.last_steps) == len(expected.steps) > 10
        for mine, theirs in zip(native.last_steps, expected.steps, strict=True):
            assert mine.decision == theirs.decision
            assert mine.kept.tolist() == theirs.kept.tolist()
