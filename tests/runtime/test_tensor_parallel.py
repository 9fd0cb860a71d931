"""Shards of the demo model, executed side by side and summed, generate what one rank generates."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.export.checkpoint import open_checkpoint
from dycoke_trt.export.llm import export_llm
from dycoke_trt.runtime.blocks import blocks_for
from dycoke_trt.runtime.native.ranks import load_ranks
from dycoke_trt.runtime.request import Event, Request
from dycoke_trt.runtime.runner import ModelRunner
from dycoke_trt.runtime.scheduler import Scheduler

PROMPT, NEW, BLOCK = 40, 24, 8


def generate(runner: ModelRunner, prompt: list[int], visual: torch.Tensor) -> list[int]:
    events: list[Event] = []
    engine = Scheduler(runner)
    engine.submit(Request("r", prompt, NEW, events.append, visual))
    engine.run_until_idle()
    return [token for event in events for token in event.tokens]


@pytest.mark.parametrize("seed", range(3))
def test_two_and_four_ranks_give_the_tokens_of_one(tmp_path: Path, seed: int) -> None:
    checkpoint = open_checkpoint(MODEL_DIR)
    torch.manual_seed(seed)
    vocab = checkpoint.llm.vocab
    visual = torch.randn(PROMPT - 10, checkpoint.llm.hidden) * 0.3
    text = torch.randint(300, (10,)).tolist()
    prompt = text[:5] + list(range(vocab, vocab + len(visual))) + text[5:]
    answers = []
    for tp in (1, 2, 4):
        directory = tmp_path / str(tp)
        export_llm(checkpoint, directory, DyCokeConfig.off(), Dtype.FP32, tp)
        ranks = load_ranks(directory, blocks_for(PROMPT + NEW, BLOCK), BLOCK)
        found: list[list[int]] = [[] for _ in ranks]

        def work(rank: int, ranks=ranks, found=found) -> None:
            found[rank] = generate(ranks[rank], prompt, visual)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(tp)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        assert all(tokens == found[0] for tokens in found)
        assert len(found[0]) == NEW
        answers.append(found[0])
    assert answers[0] == answers[1] == answers[2]
