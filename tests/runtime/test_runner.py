"""The runner on a CPU, without a scheduler: chunks, lanes, what pruning records, picking tokens."""

from __future__ import annotations

import pytest
import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.core.state import PROMPT_LENGTH, SPAN_BEGIN, SPAN_END
from dycoke_trt.runtime.native.cpu import cpu_runner
from dycoke_trt.runtime.runner import ModelRunner
from dycoke_trt.runtime.sampling import Sampling
from dycoke_trt.runtime.selection import StepTrace
from dycoke_trt.runtime.steps import Chunk, Lane, StepLogits
from dycoke_trt.tests.runtime.tiny import CONFIG, random_weights, video_prompt

BLOCKS = [[5, 2, 9, 0, 11, 7, 3, 13, 1], [4, 8, 6, 10, 12, 14, 15, 16, 17]]


def make(config: DyCokeConfig) -> ModelRunner:
    return cpu_runner(CONFIG, random_weights(), 18, 4, config)


def prefill(runner: ModelRunner, row: int, *bounds: int) -> torch.Tensor:
    ids, embeddings = video_prompt(row)
    logits = None
    for past, upto in zip((0, *bounds), (*bounds, len(ids)), strict=True):
        assert logits is None
        last = upto == len(ids)
        logits = runner.prefill(Chunk(ids[past:upto], past, BLOCKS[row], embeddings, last))
    assert logits is not None
    return logits.logits


@pytest.mark.parametrize("bounds", [(1,), (7, 8, 20), (29,)])
def test_logits_come_after_the_last_chunk_alone(bounds: tuple[int, ...]) -> None:
    whole = prefill(make(DyCokeConfig.off()), 0)
    assert whole.shape == (1, CONFIG.vocab)
    chunked = prefill(make(DyCokeConfig.off()), 0, *bounds)
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [DyCokeConfig.off(), DyCokeConfig(l=1, p=0.5)], ids=str)
def test_a_batch_of_lanes_is_each_lane_alone(config: DyCokeConfig) -> None:
    length = len(video_prompt(0)[0])
    lanes = [Lane(3 + row, length + 1, length, BLOCKS[row]) for row in range(2)]
    together, traces = make(config), list[tuple[int, StepTrace]]()
    for row in range(2):
        prefill(together, row)
    both = together.decode(lanes, lambda row, step: traces.append((row, step))).logits
    assert [row for row, _ in traces] == ([0, 1] if config.p else [])
    for row, lane in enumerate(lanes):
        alone = make(config)
        prefill(alone, row)
        torch.testing.assert_close(alone.decode([lane]).logits[0], both[row], atol=1e-4, rtol=0)
        assert alone.selection.context == (length + 1 if config.p else 0)
        assert alone.selection.decisions == [0, 0, int(config.p > 0), 0]


def test_prompts_leave_a_record_where_something_is_pruned() -> None:
    pruned = make(DyCokeConfig(l=1, p=0.5))
    prefill(pruned, 0, 13)
    assert pruned.state is not None
    ids, _ = video_prompt(0)
    visual = [i for i, token in enumerate(ids) if token >= CONFIG.vocab]
    record = pruned.state.record[BLOCKS[0][(len(ids) - 1) // 4]]
    assert record[[PROMPT_LENGTH, SPAN_BEGIN, SPAN_END]].tolist() == [
        len(ids), visual[0], visual[-1] + 1,
    ]  # fmt: skip
    assert make(DyCokeConfig.off()).state is None
    with pytest.raises(DyCokeError, match="l=4"):
        make(DyCokeConfig(l=4, p=0.5))


def test_picking_without_and_with_the_likeliest_token_at_hand() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [torch.nan, 0.0, 0.0]])
    generator = Sampling(seed=1).generator()
    for rows in (StepLogits(logits), StepLogits(logits, [1, -1])):
        assert rows.pick(0, Sampling(), generator) == 1
        assert rows.pick(0, Sampling(temperature=1e-3, top_k=0), generator) == 1
        for sampling in (Sampling(), Sampling(top_k=0)):
            with pytest.raises(FloatingPointError):
                rows.pick(1, sampling, generator)
    # What the device found is believed: it reads no logits for it.
    assert StepLogits(torch.empty(0), [2]).pick(0, Sampling(), generator) == 2
