"""flops and floors: figures, tables, and options out of range."""

import json

import pytest
from dycoke_trt.tests.support import assert_one_line, dycoke


def test_flops_json_and_plan() -> None:
    done = dycoke("flops", "--budget-frames", "16", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["planned_frames"] == 32
    assert report["dycoke"]["paper_total_tflops"] == pytest.approx(17.938, abs=1e-3)
    assert report["full"]["visual_tokens"] == 6273
    assert report["dycoke"]["visual_tokens"] == 2961
    assert report["retained_ratio"] == pytest.approx(0.1425)


def test_floors_json_takes_every_option() -> None:
    args = "--model llava-ov-0.5b --gpu l4 --frames 16 --k 0.5 --l 2 --p 0.5 --batch 8 --text 20"
    more = "--generated 10 --tokens-per-block 16 --gpus 2 --json"
    done = dycoke("floors", *args.split(), *more.split())
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == "llava-ov-0.5b"
    assert report["gpu"]["name"] == "l4"
    assert report["workload"] == {
        "frames": 16, "batch": 8, "text": 20, "generated": 10, "span_start": 14,
        "tokens_per_block": 16, "gpus": 2,
    }  # fmt: skip
    assert [report["config"][name] for name in "klp"] == [0.5, 2, 0.5]
    full, ttm, pruned = report["settings"]
    assert full["visual_tokens"] == 16 * 196 + 1
    assert full["time_per_token"] > ttm["time_per_token"] > pruned["time_per_token"] > 0


@pytest.mark.parametrize("verb", ["flops", "floors"])
def test_tables(verb: str) -> None:
    done = dycoke(verb)
    assert done.returncode == 0, done.stderr
    assert "llava-ov-7b" in done.stdout
    assert "6,273" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["flops", "--model", "gpt"], "unknown model 'gpt'; presets: llava-ov-0.5b"),
        (["flops", "--k", "1"], "k=1.0 is not allowed; allowed: a number, 0 <= k < 1"),
        (["flops", "--frames", "0"], "--frames 0"),
        (["flops", "--budget-frames", "0"], "budget_frames=0"),
        (["floors", "--gpu", "h300"], "unknown GPU 'h300'"),
        (["floors", "--bandwidth", "100"], "both --bandwidth and --flops"),
        (["floors", "--bandwidth", "0", "--flops", "1"], "allowed: numbers > 0"),
        (["floors", "--l", "28"], "l=28 leaves nothing to prune"),
        (["floors", "--p", "nan"], "p=nan"),
        (["floors", "--frames", "-4"], "frames=-4"),
    ],
)
def test_user_errors_are_one_line(args: list[str], message: str) -> None:
    assert_one_line(dycoke(*args), message)


def test_unknown_options_are_refused() -> None:
    done = dycoke("floors", "--beam", "4")
    assert done.returncode == 2
    assert "--beam" in done.stderr
