"""The recorded runs through exporter and native backend, from bare Qwen2 checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from dycoke_trt.arch.qwen2 import Weights
from dycoke_trt.arch.spec import DecoderSpec
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.decisions import Decision
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.export.checkpoint import open_checkpoint
from dycoke_trt.export.llm import export_llm
from dycoke_trt.runtime.native.cpu import cpu_runner
from dycoke_trt.runtime.native.weights import load_weights
from dycoke_trt.runtime.request import Event, Request
from dycoke_trt.runtime.scheduler import EngineLimits, Scheduler
from dycoke_trt.runtime.selection import StepTrace
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TRACES = sorted(p.name for p in GOLDEN.glob("*decode_*_L*_P*.safetensors"))
FULL = sorted(p.name for p in GOLDEN.glob("*decode_*_full.safetensors"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[DecoderSpec, Weights]]:
    """Model A, B, C: as a Qwen2 directory, exported, and read back."""
    loaded = {}
    for name in "ABC":
        source = tmp_path_factory.mktemp(name)
        for kind in ("config.json", "model.safetensors"):
            shutil.copyfile(GOLDEN / f"decode_{name}_{kind}", source / kind)
        target = source / "llm"
        export_llm(open_checkpoint(source), target, DyCokeConfig.off(), Dtype.FP32)
        loaded[name] = load_weights(target)
    return loaded


def run(
    model: tuple[DecoderSpec, Weights], name: str, config: DyCokeConfig, chunk: int
) -> tuple[list[int], list[StepTrace], torch.Tensor]:
    """Tokens, traced steps and decode logits [24, vocab] of a recorded prompt."""
    llm, weights = model
    inputs = load_file(GOLDEN / f"decode_{name}_inputs.safetensors")
    begin, count = int(inputs["image_token_start_index"]), int(inputs["image_token_length"])
    ids = inputs["token_ids"].tolist()
    prompt = [llm.vocab + i - begin if token < 0 else token for i, token in enumerate(ids)]
    steps: list[StepTrace] = []
    events: list[Event] = []
    logits = []
    runner = cpu_runner(llm, weights, 20, 8, config)
    engine = Scheduler(
        runner, EngineLimits(prefill_chunk=chunk), lambda _, step: steps.append(step)
    )
    plain = runner.model.logits

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        logits.append(plain(hidden)[0])
        return plain(hidden)

    runner.model.logits = keep  # type: ignore[method-assign]
    visual = inputs["inputs_embeds"][begin : begin + count]
    engine.submit(Request("r", prompt, 25, events.append, visual))
    engine.run_until_idle()
    return [t for event in events for t in event.tokens], steps, torch.stack(logits[1:])


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("chunk", [2048, 23])
def test_golden_run(exported, name: str, chunk: int) -> None:
    paper = name.startswith("paper")
    rest = name.removeprefix("paper_")
    trace = load_file(GOLDEN / name)
    config = DyCokeConfig(
        l=int(rest.split("_L")[1][0]),
        p=float(rest.split("_P")[1][:3]),
        gate="reuse" if paper else "full",
        granularity="token",
    )
    tokens, steps, logits = run(exported[rest[7]], rest[7], config, chunk)
    assert tokens[:-1] == trace["input_token"].tolist()
    assert tokens[1:] == trace["next_token"].tolist()
    torch.testing.assert_close(logits, trace["logits"], atol=1e-4, rtol=0)
    assert len(steps) == 24
    for i, step in enumerate(steps):
        torch.testing.assert_close(step.scores, trace["score"][i], atol=1e-5, rtol=0)
        assert abs(step.similarity - trace["similarity"][i]) < 1e-5
        assert (step.decision == Decision.RESELECT) == bool(trace["reselected"][i])
        if trace["pruned"][i]:
            assert step.kept.tolist() == trace["kept"][i].tolist()
        else:
            assert len(step.kept) == len(step.scores)


@pytest.mark.parametrize("name", FULL)
def test_golden_run_without_pruning(exported, name: str) -> None:
    model = name.removeprefix("paper_")[7]
    trace = load_file(GOLDEN / name)
    tokens, steps, logits = run(exported[model], model, DyCokeConfig.off(), 2048)
    assert tokens[1:] == trace["next_token"].tolist()
    torch.testing.assert_close(logits, trace["logits"], atol=1e-4, rtol=0)
    assert steps == []
