"""A bundle in one process against plain transformers, on the demo model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

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
MAX_TOKENS = 80


class Generated(NamedTuple):
    """What transformers answers. margins: from the likeliest token to the next, of each step."""

    tokens: list[int]
    margins: list[float]


def generate(
    plain: Answerer, prompts: list[list[int]], videos: list[torch.Tensor]
) -> Iterator[Generated]:
    """Greedy answers to prompts of equal length, in one batch, without their end tokens."""
    ends = plain.model.generation_config.eos_token_id
    with torch.no_grad():
        whole: Any = plain.model.generate(
            input_ids=torch.tensor(prompts),
            attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.int64),
            pixel_values_videos=torch.stack([to_pixels(frames) for frames in videos]),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    top = torch.stack(whole.scores, dim=1).topk(2).values
    margins = (top[..., 0] - top[..., 1]).tolist()
    for row, answer in enumerate(whole.sequences[:, len(prompts[0]) :].tolist()):
        end = next(i for i, token in enumerate(answer) if token in ends)
        yield Generated(answer[:end], margins[row])


def test_without_compression_tokens_equal_generate() -> None:
    """Greedy tokens of 100 held-out samples, all in flight at once in the native backend."""
    pipeline = Pipeline(demo_bundle(DyCokeConfig.off()), kv_tokens=90_000, tokens_per_block=8)
    plain = Answerer(MODEL_DIR)
    events: dict[int, list[Event]] = {}
    by_length: defaultdict[int, list[tuple[int, list[int], torch.Tensor]]] = defaultdict(list)
    for seed in HELD_OUT_SEEDS[:SAMPLES]:
        sample = make_sample(seed)
        frames = torch.from_numpy(round_trip(sample.frames))
        visual = pipeline.manifest.visual_tokens(len(frames))
        prompt = pipeline.prompts.build(sample.question, visual)
        ids = plain.tokenizer(build_prompt(sample.question, visual)).input_ids
        assert len(prompt) == len(ids)
        by_length[len(ids)].append((seed, ids, frames))
        events[seed] = []
        embeddings = pipeline.embed_video(frames)
        ends = frozenset(pipeline.manifest.end_ids)
        pipeline.engine.submit(
            Request(str(seed), prompt, MAX_TOKENS, events[seed].append, embeddings, end_ids=ends)
        )
    pipeline.engine.run_until_idle()
    for batch in by_length.values():
        seeds, prompts, videos = map(list, zip(*batch, strict=True))
        for seed, wanted in zip(seeds, generate(plain, prompts, videos), strict=True):
            got = [token for event in events[seed] for token in event.tokens]
            if got != wanted.tokens:
                pairs = zip(got, wanted.tokens, strict=False)
                first = next(i for i, (a, b) in enumerate(pairs) if a != b)
                assert wanted.margins[first] < 1e-5, (seed, first)
    assert pipeline.engine.blocks.free == pipeline.engine.blocks.num_blocks
