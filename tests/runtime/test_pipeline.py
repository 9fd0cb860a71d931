"""A bundle in one process against plain transformers, on the demo model."""

from __future__ import annotations

from typing import Any

import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.demo.mp4 import round_trip
from dycoke_trt.demo.normalise import to_pixels
from dycoke_trt.demo.shapes import HELD_OUT_SEEDS, make_sample
from dycoke_trt.demo.tokenizer import build_prompt
from dycoke_trt.eval.shapes import Answerer
from dycoke_trt.runtime.pipeline import Pipeline
from dycoke_trt.runtime.request import Event, Request
from dycoke_trt.tests.support import demo_bundle

SAMPLES = 100


def test_without_compression_tokens_equal_generate() -> None:
    """Greedy tokens of 100 held-out samples, all in flight at once in the native backend."""
    pipeline = Pipeline(demo_bundle(DyCokeConfig.off()), kv_tokens=90_000, tokens_per_block=8)
    plain = Answerer(MODEL_DIR)
    events: dict[str, list[Event]] = {}
    expected: dict[str, torch.Tensor] = {}
    margins: dict[str, torch.Tensor] = {}
    for seed in HELD_OUT_SEEDS[:SAMPLES]:
        sample, name = make_sample(seed), str(seed)
        frames = torch.from_numpy(round_trip(sample.frames))
        visual = pipeline.manifest.visual_tokens(len(frames))
        prompt = pipeline.prompts.build(sample.question, visual)
        text = build_prompt(sample.question, visual)
        inputs = plain.tokenizer(text, return_tensors="pt")
        assert len(prompt) == inputs.input_ids.shape[1]
        with torch.no_grad():
            whole: Any = plain.model.generate(
                **inputs,
                pixel_values_videos=to_pixels(frames)[None],
                max_new_tokens=80,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
        expected[name] = whole.sequences[0, len(prompt) :]
        top = torch.stack(whole.scores)[:, 0].topk(2).values
        margins[name] = top[:, 0] - top[:, 1]
        events[name] = []
        embeddings = pipeline.embed_video(frames)
        ends = frozenset(pipeline.manifest.end_ids)
        pipeline.engine.submit(
            Request(name, prompt, 80, events[name].append, embeddings, end_ids=ends)
        )
    pipeline.engine.run_until_idle()
    for name, tokens in expected.items():
        got = [token for event in events[name] for token in event.tokens]
        wanted = tokens.tolist()[:-1]  # the end token is not delivered
        if got != wanted:
            first = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b)
            assert margins[name][first] < 1e-5, (name, first)
    assert pipeline.engine.blocks.free == pipeline.engine.blocks.num_blocks


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
