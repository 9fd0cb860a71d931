"""The oracle against the recorded runs of the authors' code and of the paper, token for token."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.decisions import Decision
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.eval.oracle import Pruner, generate, tokens_that_entered
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TRACES = sorted(p.name for p in GOLDEN.glob("*decode_*_L*_P*.safetensors"))


def load(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    config = json.loads((GOLDEN / f"decode_{name}_config.json").read_text())
    model = Qwen2ForCausalLM(Qwen2Config(**config)).eval()
    model.load_state_dict(load_file(GOLDEN / f"decode_{name}_model.safetensors"))
    return model, load_file(GOLDEN / f"decode_{name}_inputs.safetensors")


def run(name: str, config: DyCokeConfig, **options: Any) -> Any:
    model, inputs = load(name)
    begin = int(inputs["image_token_start_index"])
    span = (begin, begin + int(inputs["image_token_length"]))
    embeds = inputs["inputs_embeds"]
    options = {"max_new_tokens": 25, "keep_logits": True, **options}
    return generate(model.model, model.lm_head, embeds, span, config, **options)


@pytest.mark.parametrize("name", TRACES)
def test_golden_run(name: str) -> None:
    semantics, rest = ("paper", name[6:]) if name.startswith("paper") else ("official", name)
    model, l, p = rest[7], int(rest.split("_L")[1][0]), float(rest.split("_P")[1][:3])
    trace = load_file(GOLDEN / name)
    mode = "reuse" if semantics == "paper" else "full"
    got = run(model, DyCokeConfig(l=l, p=p, gate=mode))

    assert got.tokens[:-1] == trace["input_token"].tolist()
    assert got.tokens[1:] == trace["next_token"].tolist()
    torch.testing.assert_close(got.logits, trace["logits"], atol=1e-4, rtol=0)
    for i, step in enumerate(got.steps):
        torch.testing.assert_close(step.scores, trace["score"][i], atol=1e-5, rtol=0)
        assert abs(step.similarity - trace["similarity"][i]) < 1e-5
        assert (step.decision == Decision.RESELECT) == bool(trace["reselected"][i])
        assert step.pruned == bool(trace["pruned"][i])
        if step.pruned:
            assert step.kept.tolist() == trace["kept"][i].tolist()
            assert 0 < step.mass_kept < 1
        else:
            assert step.mass_kept == pytest.approx(1)


@pytest.mark.parametrize("name", ["A", "B", "C"])
@pytest.mark.parametrize("semantics", ["paper_", ""])
def test_golden_run_without_pruning(name: str, semantics: str) -> None:
    official = "" if semantics else "_official"
    trace = load_file(GOLDEN / f"{semantics}decode_{name}{official}_full.safetensors")
    got = run(name, DyCokeConfig.off())
    assert got.tokens[1:] == trace["next_token"].tolist()
    torch.testing.assert_close(got.logits, trace["logits"], atol=1e-4, rtol=0)
    assert got.steps == []


def test_generation_ends_with_an_end_token() -> None:
    everything = run("A", DyCokeConfig.off()).tokens
    end = everything[5]
    got = run("A", DyCokeConfig.off(), end_ids=frozenset([end]))
    assert got.tokens == everything[: everything.index(end) + 1]


def test_layer_zero_is_scored_and_pruned_in_the_same_step() -> None:
    got = run("A", DyCokeConfig(l=0, p=0.5, gate="always"))
    assert all(step.pruned for step in got.steps)
    assert got.tokens != run("A", DyCokeConfig.off()).tokens


def test_an_l_that_prunes_nothing_is_refused() -> None:
    with pytest.raises(DyCokeError, match="l=6"):
        run("A", DyCokeConfig(l=6))


SPAN, BLOCK = (3, 23), 4  # visual tokens 3..22: one before the first whole block, 3 behind the last


def prune(config: DyCokeConfig, steps: int, block: int | None = None) -> Pruner:
    """Decode steps on random queries and one set of keys."""
    draw = torch.Generator().manual_seed(5)
    keys = torch.randn(1, 30, 2, 8, generator=draw)
    pruner = Pruner(config, *SPAN, tokens_per_block=block)
    for _ in range(steps):
        pruner.score_and_select(3 * torch.randn(1, 4, 8, generator=draw), keys)
    return pruner


def test_memory_ranks_the_average_and_the_gate_compares_raw_scores() -> None:
    plain, kept = (prune(DyCokeConfig(gate="always", memory=m), 6) for m in (0.0, 0.6))
    average = kept.steps[0].scores
    differs = False
    for i, (a, b) in enumerate(zip(plain.steps, kept.steps, strict=True)):
        assert a.similarity == b.similarity
        average = b.scores if i == 0 else 0.6 * average + 0.4 * b.scores
        best = average.sort(descending=True, stable=True).indices[: len(b.kept)]
        assert b.kept.tolist() == sorted(best.tolist())
        differs |= a.kept.tolist() != b.kept.tolist()
    assert differs


def test_in_order_of_importance_blocks_keep_the_best_tokens() -> None:
    config = DyCokeConfig(p=0.5, memory=0.5, order="importance", gate="always")
    average = torch.zeros(20)
    for i, step in enumerate(prune(config, 5, BLOCK).steps):
        average = step.scores if i == 0 else 0.5 * average + 0.5 * step.scores
        # Four tokens outside whole blocks, and two of the four blocks.
        best = average.sort(descending=True, stable=True).indices[: 4 + 2 * BLOCK]
        assert step.kept.tolist() == sorted(best.tolist())


def test_without_a_new_selection_nothing_moves() -> None:
    config = DyCokeConfig(p=0.5, order="importance", gate="once")
    first, *rest = steps = prune(config, 5, BLOCK).steps
    assert all(step.kept.tolist() == first.kept.tolist() for step in rest)
    assert tokens_that_entered(steps) == 0


def test_how_many_tokens_enter() -> None:
    steps = prune(DyCokeConfig(p=0.5, order="importance", gate="always"), 5, BLOCK).steps
    kept = [set(step.kept.tolist()) for step in steps]
    expected = sum(len(now - before) for before, now in pairwise(kept))
    assert tokens_that_entered(steps) == expected > 0


def test_an_order_of_tokens_is_refused() -> None:
    with pytest.raises(DyCokeError, match="order='importance' has no effect on tokens"):
        Pruner(DyCokeConfig(order="importance"), *SPAN)
