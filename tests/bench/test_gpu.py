"""The GPU benchmark runs from end to end, on a tiny model in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_the_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "dycoke_trt.bench.gpu", "--tiny", "-o", str(out)],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    (model,) = report["models"]
    assert {row["kernel"] for row in model["kernels"]} == {
        "attention (K and V)", "score: logits and statistics", "score, gate, select, compact",
        "score alone", "gate, select, compact", "rotary and KV write", "residual and RMSNorm",
        "SwiGLU",
    }  # fmt: skip
    rows = {row["setting"]: row for row in model["serving"]}
    assert {"full", "TTM + DP, B=16", "transformers, full"} <= set(rows)
    assert not any("skipped" in row for row in rows.values())
    assert 0 <= rows["TTM + DP, B=16"]["reselected"] <= 1
    assert "TTM + DP, B=16" in done.stdout
