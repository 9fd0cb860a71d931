"""Traces of a GPU: a stored one, made by hand, and a live one where there is a GPU."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from dycoke_trt.bench.profile.page import page
from dycoke_trt.bench.profile.summary import summarise
from dycoke_trt.bench.profile.trace import Trace, read_nsys
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.tests.bench.chromium import BINARY, chromium
from dycoke_trt.tests.support import demo_bundle, dycoke

DATA = Path(__file__).parents[1] / "data" / "profile"
CLIP = Path(__file__).parents[2] / "demo" / "clips" / "colour.mp4"
GEMM = "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64"


def stored(folder: Path, *more: str) -> Trace:
    path = folder / "trace.sqlite"
    with closing(sqlite3.connect(path)) as base:
        base.executescript((DATA / "nsys_gpu.sql").read_text())
        for statement in more:
            base.execute(statement)
        base.commit()
    return read_nsys(path)


def test_kernels_are_found_by_stage(tmp_path: Path) -> None:
    summary = summarise(stored(tmp_path), {"decode step": 0.007})
    assert summary["requests"] == 1
    rows = {row["stage"]: row for row in summary["stages"]}
    assert rows["prefill"]["count"] == 1  # that of another domain is not ours
    assert rows["decode step"]["x_floor"] == pytest.approx(2.0)  # of 16 and 12 ms
    assert summary["coverage"] == pytest.approx(78 / 80)
    kernels = {(r["stage"], r["kernel"]): r["total"] * 1e3 for r in summary["gpu"]["kernels"]}
    assert kernels == {
        ("vision+ttm", GEMM): pytest.approx(16),
        ("prefill", GEMM): pytest.approx(18),
        ("prefill", "flash_fwd_kernel"): pytest.approx(8),
        ("score", "_score"): pytest.approx(1),
        ("attention", "_attend"): pytest.approx(5),
        ("decode step", "CUDA graph"): pytest.approx(10),
    }
    assert summary["gpu"]["idle_share"] == pytest.approx(1 - 58 / 80)


def test_kernels_within_a_graph_belong_to_the_stage_that_launched_it(tmp_path: Path) -> None:
    """`--cuda-graph-trace=node`, which `dycoke profile` asks for: they carry the launch's id."""
    nodes = [
        "DROP TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE",
        *(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES "
            f"({start}, {start + 4_000_000}, 0, 1, 7, 7, 1677721600, {name}, {name}, 1, 96, "
            f"8, 2, 1, 128, 1, 1, {name})"
            for start, name in ((77_500_000, 33), (82_000_000, 32))
        ),
    ]
    gpu = summarise(stored(tmp_path, *nodes))["gpu"]
    found = {(r["stage"], r["kernel"]): r["total"] * 1e3 for r in gpu["kernels"]}
    assert found["decode step", "_score"] == found["decode step", "_attend"] == pytest.approx(4)
    assert gpu["idle_share"] == pytest.approx(1 - 56 / 80)


def test_the_page_lists_kernels_and_opens_in_a_browser(tmp_path: Path) -> None:
    summary = summarise(stored(tmp_path)) | {
        "dycoke": {},
        "plan": {"warmup": 1, "mode": "offline", "device": "cuda", "frames": 16, "question": "?"},
        "answers": [{"tokens": 2}],
        "machine": {"processor": "p", "cores": 1, "commit": "c"},
    }
    html = page(summary)
    assert "Kernels by stage" in html
    assert "27.5%" in html  # GPU idle
    assert GEMM in html
    path = tmp_path / "report.html"
    path.write_text(html)
    if BINARY is None:
        pytest.skip("chromium is not installed: the page was not opened")
    with chromium() as browser:
        for dark in (False, True):
            for width in (390, 1100):
                seen = browser.open(path, width=width, dark=dark)
                assert seen.console == []
                assert seen.width <= width
                assert seen.background == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")


@pytest.mark.skipif(BINARY is None, reason="chromium is not installed")
def test_the_browser_tells_what_is_wrong_with_a_page(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        '<!doctype html><meta name="viewport" content="width=device-width">'
        "<div style='width:900px'>wide</div><script>console.error('planted')</script>"
    )
    with chromium() as browser:
        seen = browser.open(path, width=390, dark=False)
    assert seen.width >= 900
    assert any("planted" in message for message in seen.console)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "source",
    [
        "torch",
        pytest.param(
            "nsys",
            marks=pytest.mark.skipif(
                shutil.which("nsys") is None or find_spec("nvtx") is None,
                reason="nsys or the package nvtx is not installed",
            ),
        ),
    ],
)
def test_a_live_gpu(tmp_path: Path, source: str) -> None:
    bundle = demo_bundle(DyCokeConfig(k=0.7, l=2, p=0.5))
    done = dycoke(
        "profile", "--offline", bundle, "--device", "cuda", "--video", CLIP, "What appears?",
        "--source", source, "--requests", "2", "-o", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["source"] == source
    steps = {row["stage"]: row for row in summary["stages"]}["decode step"]["count"]
    assert steps == sum(answer["tokens"] for answer in summary["answers"])
    assert 0 < summary["gpu"]["idle_share"] < 1
    stages = {row["stage"] for row in summary["gpu"]["kernels"]}
    assert {"vision+ttm", "prefill", "decode step"} <= stages
