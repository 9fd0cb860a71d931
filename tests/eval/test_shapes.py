"""`dycoke eval` on the demo model: equal to plain generate, honest figures, one-line errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.counts import blocks_kept, tokens_kept
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.demo.mp4 import round_trip
from dycoke_trt.demo.normalise import to_pixels
from dycoke_trt.demo.shapes import HELD_OUT_SEEDS, TASKS, make_sample
from dycoke_trt.demo.tokenizer import build_prompt
from dycoke_trt.eval.report import difference, summarise
from dycoke_trt.eval.shapes import MAX_NEW_TOKENS, Answerer, Outcome, answer, run_suite
from dycoke_trt.eval.study import STUDIES, Setting, Span, block_rate, merging
from dycoke_trt.tests.support import assert_one_line, dycoke

TOKEN = DyCokeConfig(granularity="token")
FULL = Setting(DyCokeConfig.off())
SPAN = Span(before=6, visual=265)


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(MODEL_DIR)


def outcome(task: str = "colour", score: float = 1.0, **changes: Any) -> Outcome:
    fields = {
        "task": task, "score": score, "answer": "", "visual_tokens": 9, "steps": 4, "pruned": 2,
        "attended": 6, "entered": 3, "gate_hits": 1, "full_steps": 0, "mass_kept": 1.5,
    }  # fmt: skip
    return Outcome(**{**fields, **changes})


def test_full_tokens_equal_plain_generate(answerer: Answerer) -> None:
    """All of transformers' own path: its video features, its newline, its generate."""
    for seed in HELD_OUT_SEEDS[:14]:
        sample = make_sample(seed)
        pixels = to_pixels(round_trip(sample.frames))[None]
        visual = pixels.shape[1] * 36 + 1
        inputs = answerer.tokenizer(build_prompt(sample.question, visual), return_tensors="pt")
        with torch.no_grad():
            whole = answerer.model.generate(
                **inputs, pixel_values_videos=pixels, max_new_tokens=MAX_NEW_TOKENS, do_sample=False
            )
        expected = whole[0, inputs.input_ids.shape[1] :].tolist()
        features = answerer.features(sample)
        got, count = answerer.generate(features, sample.question, FULL)
        assert got.tokens == expected
        assert count == visual


def test_the_model_answers(answerer: Answerer) -> None:
    """A floor far above chance on a few held-out samples; docs/accuracy.md has the figures."""
    outcomes = [answer(answerer, seed, [FULL])[0] for seed in HELD_OUT_SEEDS[:42]]
    assert sum(o.score for o in outcomes) / len(outcomes) > 0.8


def test_what_pruned_steps_report(answerer: Answerer) -> None:
    seed = next(s for s in HELD_OUT_SEEDS if make_sample(s).task == "describe")
    attending = TOKEN.with_changes(gate="full", gate_threshold=0.0)
    settings = [Setting(TOKEN), Setting(attending), Setting(TOKEN)]
    reuse, full, again = answer(answerer, seed, settings)
    assert reuse == again  # nothing leaks from one generation into the next
    assert reuse.visual_tokens == 4 * (36 + 3 * 10) + 1
    assert reuse.steps == reuse.pruned > 20
    assert 0 < reuse.mass_kept < reuse.pruned
    assert full.pruned == 1  # with threshold 0 every step after the first resembles its predecessor
    assert full.full_steps == full.gate_hits == full.steps - 1


def test_several_workers_give_the_outcomes_of_one() -> None:
    settings = [FULL, Setting(TOKEN), Setting(DyCokeConfig(order="importance"), 16)]
    alone = list(run_suite(MODEL_DIR, 6, 100, settings, workers=1))
    assert list(run_suite(MODEL_DIR, 6, 100, settings, workers=2)) == alone


def test_dynamic_pruning_that_prunes_nothing_is_no_result() -> None:
    with pytest.raises(DyCokeError, match=r"p=0.7 pruned none of 8 decode steps"):
        summarise(Setting(TOKEN), [outcome(pruned=0), outcome(pruned=0)])
    assert summarise(FULL, [outcome(pruned=0)])["attention_mass_kept"] is None


def test_summaries() -> None:
    outcomes = [outcome(), outcome(score=0.0), outcome("describe", 0.5), outcome("describe", 0.75)]
    got = summarise(Setting(TOKEN), outcomes)
    assert got["tasks"]["colour"]["accuracy"] == 0.5
    assert got["tasks"]["colour"]["n"] == 2
    assert got["tasks"]["describe"]["accuracy"] == 0.625
    assert got["steps_pruned"] == 8
    assert got["attended_per_pruned_step"] == 3
    assert got["entered_of_attended"] == 0.5
    assert got["attention_mass_kept"] == pytest.approx(6 / 8)
    better = [outcome(), outcome(), outcome("describe", 0.5), outcome("describe", 1.0)]
    change = difference(better, outcomes)
    assert change["mean of short answers"]["accuracy"] == 0.5
    assert change["describe"]["accuracy"] == 0.125


def test_the_study_of_merging_is_complete() -> None:
    settings = [setting.config for setting in merging(SPAN).values()]
    assert settings[0] == DyCokeConfig.off()
    assert len(set(map(DyCokeConfig.to_json, settings))) == len(settings)
    for rate in (0.5, 0.7):
        for ttm in ("paper", "reference"):
            for gate in ("reuse", "full", "once"):
                assert TOKEN.with_changes(k=rate, p=rate, ttm=ttm, gate=gate) in settings
        assert TOKEN.with_changes(k=rate, p=rate, ttm="random") in settings
    assert TOKEN.with_changes(k=0.9, p=0.0, ttm="random") in settings


@pytest.mark.parametrize("name", STUDIES)
def test_studies_compare_different_settings_with_bases_that_they_have(name: str) -> None:
    settings = STUDIES[name].settings(SPAN)
    assert len(set(settings.values())) == len(settings)
    assert set(STUDIES[name].bases) <= set(settings)


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("size", [8, 16, 32])
def test_block_rate_attends_to_as_many_tokens_to_half_a_block(p: float, size: int) -> None:
    interior = (SPAN.before + SPAN.visual) // size - -(-SPAN.before // size)
    kept = blocks_kept(interior, block_rate(SPAN, size, p))
    attended = SPAN.visual - (interior - kept) * size
    # Edge blocks are always attended to, and one block is always kept.
    least = SPAN.visual - (interior - 1) * size
    assert abs(attended - max(tokens_kept(SPAN.visual, p), least)) <= size / 2


def test_json() -> None:
    args = "--suite shapes --samples 7 --seed 7 --k 0.7 --l 2 --p 0.5 --ttm paper --gate always"
    done = dycoke("eval", *args.split(), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["config"] == {
        **TOKEN.to_dict(), "k": 0.7, "l": 2, "p": 0.5, "gate": "always"
    }  # fmt: skip
    assert set(report["tasks"]) == set(TASKS)
    for task in report["tasks"].values():
        assert task["n"] == 1
        assert 0 <= task["low"] <= task["accuracy"] <= task["high"] <= 1
    assert report["steps_pruned"] == report["steps"] > 0
    assert report["gate_hits"] >= 0
    assert 0 < report["attention_mass_kept"] <= 1
    assert next(iter(report["settings"])) == "full tokens"
    assert "difference" in report


def test_the_native_backend() -> None:
    """Full tokens answer as the oracle does; pruning is by block, on two workers."""
    args = ["--samples", "4", "--seed", "7", "--k", "0.7", "--p", "0.5", "--json"]
    oracle, native = (
        json.loads(dycoke("eval", *args, *more).stdout)
        for more in ((), ("--backend", "native", "--tokens-per-block", "8", "--workers", "2"))
    )
    assert (oracle["backend"], oracle["tokens_per_block"]) == ("oracle", None)
    assert (native["backend"], native["tokens_per_block"]) == ("native", 8)
    assert native["config"] == {**oracle["config"], "granularity": "block"}
    full, expected = (report["settings"]["full tokens"] for report in (native, oracle))
    assert full["tasks"] == expected["tasks"]
    assert full["steps"] == expected["steps"]
    assert native["steps_pruned"] == native["steps"] > 0
    # Blocks at the edges of the visual span are always attended to.
    assert native["attention_mass_kept"] != oracle["attention_mass_kept"]


def test_table() -> None:
    done = dycoke("eval", "--samples", "7")
    assert done.returncode == 0, done.stderr
    assert "full tokens" in done.stdout
    assert "describe" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--suite mvbench", "unknown suite 'mvbench'; allowed: shapes"),
        ("--samples 0", "--samples 0"),
        ("--seed -1", "--seed -1"),
        ("--samples 2000000", "seed + samples <= 1000000"),
        ("--k 1", "k=1.0 is not allowed"),
        ("--p 0.5 --l 6", "l=6 leaves nothing to prune in a model of 6 layers"),
        ("--gate often", "gate='often'"),
        ("--gate full", "--gate has no effect without --p"),
        ("--l 2 --k 0.5", "--l has no effect without --p"),
        ("--ttm random --p 0.5", "--ttm has no effect without --k"),
        ("--study merging --k 0.5", "--study has its own settings; leave out --k"),
        ("--study merging --gate always", "leave out --gate"),
        ("--study merging --backend native", "leave out --backend native"),
        ("--study taste", "unknown study 'taste'; allowed: merging, selection, candidates"),
        ("--backend trtllm", "unknown backend 'trtllm'; allowed: oracle, native"),
        ("--memory 0.5", "--memory has no effect without --p"),
        ("--p 0.5 --order importance", "granularity='token' has no effect with order"),
        ("--tokens-per-block 8 --backend native", "--tokens-per-block has no effect without --p"),
        ("--tokens-per-block 0 --backend native --p 0.5", "--tokens-per-block 0"),
        ("--model nowhere", "nowhere/config.json is missing: no model there"),
    ],
)
def test_user_errors_are_one_line(args: str, message: str) -> None:
    assert_one_line(dycoke("eval", *args.split()), message)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None), ("config.json", b"{"), ("config.json", b"[]"),
        ("model.safetensors", None), ("model.safetensors", b"\0" * 100),
        ("tokenizer.json", None), ("tokenizer.json", b"{}"),
    ],
)  # fmt: skip
def test_broken_model_files_are_one_line(tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL_DIR, folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(DyCokeError) as error:
        Answerer(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_weights_file_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL_DIR, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(DyCokeError, match="no readable model") as error:
        Answerer(folder)
    assert "\n" not in str(error.value)
