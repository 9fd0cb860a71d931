"""The GPU benchmark runs from end to end, on a tiny model in Triton's interpreter; its verdicts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.bench.experiments.gpu.__main__ import (
    NEEDED,
    SETTINGS,
    THEIRS,
    ModelBench,
    Sizes,
    measure,
)
from dycoke_trt.bench.experiments.gpu.aims import target_lines, targets
from dycoke_trt.cost.dims import preset

RATES = {"read_bytes_per_s": 4e12, "copy_bytes_per_s": 4e12, "bf16_flops": 7e14}


@pytest.fixture
def bench() -> ModelBench:
    return ModelBench(preset("llava-ov-7b"), Sizes(), RATES)


def test_the_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "dycoke_trt.bench.experiments.gpu", "--tiny", "-o", str(out)],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    (model,) = report["models"]
    assert {row["kernel"] for row in model["kernels"]} == {
        "attention (K and V)", "score: logits and statistics", "score, gate, select, compact",
        "select path (both launches)", "attention over a list of all",
        "score, gate, select and list tokens", "score alone", "gate, select, compact",
        "score, gate, select, compact, in order of importance",
        "move K and V of a tenth of the tokens", "move nothing",
        "rotary and KV write", "residual and RMSNorm", "SwiGLU",
    }  # fmt: skip
    assert model["vision"][0]["survivors"] == 7  # of 4 frames of 4 tokens at K = 0.7
    rows = {row["setting"]: row for row in model["serving"]}
    assert set(rows) == {
        "full", "TTM + DP, B=16", "transformers, full", "transformers, TTM"
    }  # fmt: skip
    assert not any("skipped" in row for row in rows.values())
    assert 0 <= rows["TTM + DP, B=16"]["reselected"] <= 1
    assert "TTM + DP, B=16" in done.stdout
    assert {row["target"] for row in report["targets"] if row["measured"] is not None} == {
        "select path at batch 1, us", "full decoding at batch 1, x byte floor",
        "TTM of 32 frames, ms",
    }  # fmt: skip


def test_what_targets_need_comes_first(bench: ModelBench) -> None:
    cells = list(bench.cells())
    serving = {(c.setting, c.batch): c.worth for c in cells if c.part == "serving"}
    assert len(serving) == 4 * (len(SETTINGS) + 2)
    needed = {key for key, worth in serving.items() if worth == NEEDED}
    assert needed == {
        ("full", 1), ("full", 8), ("full", 64), ("transformers, full", 8),
        *((f"TTM + DP, B={block}", 64) for block in (16, 32, 64)),
    }  # fmt: skip
    assert serving["transformers, full", 64] == THEIRS
    kernels = {c.batch: c.worth for c in cells if c.part == "kernels"}
    assert {batch for batch, worth in kernels.items() if worth == NEEDED} == {1, 64}


def test_a_cell_that_does_not_fit_is_skipped_with_its_reason(bench: ModelBench) -> None:
    cells = {(c.setting, c.batch): c for c in bench.cells() if c.part == "serving"}
    slow = cells["transformers, full", 64]
    assert bench.guess(slow) > bench.guess(cells["full", 64]) > bench.guess(cells["TTM", 1])
    (row,) = measure(slow, 5.0)
    assert row["skipped"].endswith("s, 5 s are left")
    assert "llm" not in vars(bench)  # no weights were made for it
    # The guesses of everything that targets need leave room in eight minutes.
    assert sum(bench.guess(c) for c in bench.cells() if c.worth == NEEDED) < 300


def served(setting: str, batch: int, tokens: float, floor: float = 1.0) -> dict[str, Any]:
    per_token = batch / tokens * 1e3
    return {
        "setting": setting, "batch": batch, "tokens_per_s": tokens, "ms_per_token": per_token,
        "byte_floor_ms_per_token": per_token / floor,
    }  # fmt: skip


def test_verdicts() -> None:
    kernels = [
        {"kernel": "select path (both launches)", "batch": 1, "us": 11.0},
        {"kernel": "select path (both launches)", "batch": 64, "us": 201.0},
        {"kernel": "attention (K and V)", "batch": 64, "us": 100.0, "times_floor": 1.25},
    ]
    serving = [
        served("full", 1, 250, 1.3), served("full", 64, 6000, 1.3), served("full", 8, 1500),
        served("TTM + DP, B=16", 64, 9000), served("TTM + DP, B=64", 64, 12_000),
        served("transformers, full", 8, 200),
    ]  # fmt: skip
    model = {"model": "m", "vision": [{"ttm_ms": 0.05}], "kernels": kernels, "serving": serving}
    rows = {row["target"]: row for row in targets({"models": [model]})}
    assert [row["met"] for row in rows.values()] == [
        True, False, False, True, True, True, True, True
    ]  # fmt: skip
    ratio = rows["TTM + DP against full at batch 64, x tokens/s"]
    assert (ratio["measured"], ratio["note"]) == (2.0, "TTM + DP, B=64")
    serving[1] = served("full", 64, 6000, 1.5)  # slow full decoding makes any ratio look good
    rows = {row["target"]: row for row in targets({"models": [model]})}
    ratio = rows["TTM + DP against full at batch 64, x tokens/s"]
    assert not ratio["met"]
    assert "does not count" in ratio["note"]
    assert any("NO" in line for line in target_lines(list(rows.values())))
    empty = {"model": "m", "vision": [], "kernels": [], "serving": []}
    assert all(row["met"] is None for row in targets({"models": [empty]}))
