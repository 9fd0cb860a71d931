"""What a pipeline answers and reports, on the demo model."""

from __future__ import annotations

import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo.mp4 import round_trip
from dycoke_trt.demo.shapes import HELD_OUT_SEEDS, make_sample
from dycoke_trt.runtime.pipeline import Pipeline
from dycoke_trt.tests.support import demo_bundle


def test_pruned_answers_and_trace() -> None:
    pipeline = Pipeline.from_record(demo_bundle(DyCokeConfig()))
    frames = torch.from_numpy(round_trip(make_sample(HELD_OUT_SEEDS[6]).frames))
    deltas: list[str] = []
    answer = pipeline.ask(frames, make_sample(HELD_OUT_SEEDS[6]).question, on_text=deltas.append)
    assert "".join(deltas) == answer.text
    assert answer.visual_tokens == 265
    assert len(answer.steps) == len(answer.tokens)  # every token but the first, and the end token
    assert all(0 < len(step.kept) < 265 for step in answer.steps)
    assert 0 < answer.time_to_first_token < answer.total_time
    assert pipeline.ask(frames, make_sample(HELD_OUT_SEEDS[6]).question).text == answer.text


def test_text_alone() -> None:
    answer = Pipeline.from_record(demo_bundle(DyCokeConfig())).ask(
        None, "How are you?", max_tokens=4
    )
    assert answer.visual_tokens == 0
    assert len(answer.tokens) <= 4
