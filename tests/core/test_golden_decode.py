"""Gate and selection against the recorded decode traces of the authors' code and of the paper."""

from pathlib import Path

import pytest
import torch
from dycoke_trt.core.counts import tokens_kept
from dycoke_trt.core.decisions import Decision, GateMode
from dycoke_trt.core.reselection import attended, gate, select_tokens, token_keep_table
from safetensors import safe_open

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TRACES = sorted(p.name for p in GOLDEN.glob("*decode_*_L*_P*.safetensors"))


def test_all_traces_are_there() -> None:
    assert len(TRACES) == 24  # 3 models x (L, P) in {1, 3} x {0.5, 0.7} x official, paper


@pytest.mark.parametrize("name", TRACES)
def test_trace(name: str) -> None:
    with safe_open(GOLDEN / name, "pt") as file:
        meta = file.metadata()
        trace = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    p, prompt = float(meta["P"]), int(meta["prompt_length"])
    mode = {"official": GateMode.FULL, "paper": GateMode.REUSE}[meta["semantics"]]
    steps, visual_tokens = trace["score"].shape
    count = tokens_kept(visual_tokens, p)
    assert count == trace["kept"].shape[1]

    visual = torch.ones(1, visual_tokens, dtype=torch.bool)
    keep_table = token_keep_table(p, visual_tokens)
    previous_scores = torch.full((1, visual_tokens), torch.nan)  # must not be read at step 0
    selection = visual
    decisions = []
    for step in range(steps):
        scores = trace["score"][step : step + 1]
        first = torch.tensor([step == 0])
        decision, cosine = gate(scores, previous_scores, first, mode, float(meta["gate"]))
        selected = select_tokens(scores, visual, keep_table)
        now = attended(decision, selected, selection)

        assert abs(cosine.item() - trace["similarity"][step].item()) < 1e-5
        assert (decision.item() == Decision.RESELECT) == bool(trace["reselected"][step])
        assert (decision.item() != Decision.FULL) == bool(trace["pruned"][step])
        if trace["pruned"][step]:
            assert torch.equal(now[0].nonzero()[:, 0].int(), trace["kept"][step])
        else:
            assert now.all()
        length = prompt + step + 1
        assert length - visual_tokens + int(now.sum()) == trace["attended_len"][step]

        if decision.item() == Decision.RESELECT:
            selection = selected
        previous_scores = scores
        decisions.append(decision.item())
    assert len(set(decisions)) == 2  # both sides of the gate occur
