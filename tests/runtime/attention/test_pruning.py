"""What pruning does to answers, and what a trace says of it."""

from __future__ import annotations

import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.decisions import Decision
from dycoke_trt.core.importance import reorder_pool, swaps
from dycoke_trt.runtime.attention.pruning import move_tokens
from dycoke_trt.runtime.selection import StepTrace
from dycoke_trt.tests.runtime.tiny import video_prompt

PRUNED = DyCokeConfig(l=2, p=0.5)


def submit(client, name: str, seed: int, max_tokens: int = 12, **options) -> None:
    ids, embeddings = video_prompt(seed, visual=20 + seed % 9, text=4 + seed % 5)
    client.submit(name, ids, max_tokens, embeddings=embeddings, **options)


def test_pruning_really_happens_and_is_traced(make_client) -> None:
    steps: list[tuple[str, StepTrace]] = []
    client = make_client(PRUNED, trace=lambda request, step: steps.append((request, step)))
    submit(client, "r", 3)
    client.engine.run_until_idle()
    assert len(steps) == 11  # the first of 12 tokens comes from the prefill
    assert all(request == "r" for request, _ in steps)
    assert steps[0][1].decision == Decision.RESELECT
    for _, step in steps:
        assert len(step.scores) == 23
        assert len(step.kept) < 23
        assert 0 < step.scores.sum() < 1


def test_pruning_changes_answers(make_client) -> None:
    pruned, off = make_client(PRUNED, blocks=256), make_client(DyCokeConfig.off(), blocks=256)
    for client in (pruned, off):
        for seed in range(8):
            submit(client, f"r{seed}", seed)
        client.engine.run_until_idle()
    assert any(pruned.tokens(f"r{seed}") != off.tokens(f"r{seed}") for seed in range(8))


def test_p_zero_equals_no_pruning(make_client) -> None:
    answers = []
    for config in (DyCokeConfig.off(), DyCokeConfig(k=0.7, p=0.0)):
        client = make_client(config)
        submit(client, "r", 4)
        client.engine.run_until_idle()
        answers.append(client.tokens("r"))
    assert answers[0] == answers[1]


def test_moving_a_few_tokens_equals_reordering_all() -> None:
    draw = torch.Generator().manual_seed(4)
    size, blocks = 4, torch.tensor([[5, 2, 7], [1, 8, 3]])
    pool = torch.randn(9, 3, 2, 2, size, 8, generator=draw)  # [blocks, layers, K and V, heads, ...]
    attended = (torch.arange(12) < 6).expand(2, -1)
    selected = torch.stack([torch.randperm(12, generator=draw) < 6 for _ in range(2)])
    order = swaps(selected, attended)
    expected = pool.clone()
    reorder_pool(expected, order, blocks, slice(1, None))
    row, place = (order != torch.arange(12)).nonzero(as_tuple=True)
    assert len(row) >= 4
    target, source = (
        blocks[row, at // size] * size + at % size for at in (place, order[row, place])
    )
    move_tokens(pool, target, source, 1)
    assert torch.equal(pool, expected)


def test_an_answer_keeps_its_counts(make_client) -> None:
    client = make_client(DyCokeConfig(l=2, p=0.5, order="importance", gate="always"))
    submit(client, "a", 3)
    client.engine.run_until_idle()
    counts = client.engine.selection.snapshot()
    before = (*counts.decisions, counts.moved)
    submit(client, "b", 5)
    client.engine.run_until_idle()
    assert (*counts.decisions, counts.moved) == before
    assert client.engine.selection.moved > counts.moved > 0
