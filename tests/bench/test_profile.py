"""Profiles: the arithmetic on made-up traces, one process through torch.profiler, the real nsys."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.bench.profile.nsys import find_nsys
from dycoke_trt.bench.profile.page import page
from dycoke_trt.bench.profile.program import Plan, run
from dycoke_trt.bench.profile.summary import own_times, summarise
from dycoke_trt.bench.profile.trace import Kernel, Range, Trace, read_nsys, read_torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.runner import ModelRunner
from dycoke_trt.tests.support import assert_one_line, demo_bundle, dycoke

CLIP = Path(__file__).parents[2] / "demo" / "clips" / "colour.mp4"
QUESTION = "What colour is the shape?"
CONFIG = DyCokeConfig(k=0.7, l=2, p=0.5)
REQUESTS = 5  # of which the fastest counts: other work on the machine disturbs some

needs_nsys = pytest.mark.skipif(
    find_spec("nvtx") is None or shutil.which("nsys") is None,
    reason="nsys or the package nvtx is not installed",
)

RANGES = (
    Range("prefill", 0.0, 9.0, 1),  # of a warm-up request
    Range("request", 10.0, 20.0, 1),
    Range("queue", 10.0, 11.0, 1),
    Range("prefill", 11.0, 14.0, 1),
    Range("decode step", 14.0, 19.0, 1),
    Range("attention", 15.0, 17.0, 1),
    Range("detokenise", 18.0, 19.5, 2),  # another process, at the same time
)


def rows(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in summary["stages"]}


def test_own_time_leaves_out_what_is_nested_on_the_same_thread() -> None:
    own = own_times(RANGES[2:])
    assert own == {
        "queue": 1.0,
        "prefill": 3.0,
        "decode step": 3.0,
        "attention": 2.0,
        "detokenise": 1.5,
    }


def test_warm_up_is_left_out_and_overlap_is_covered_once() -> None:
    summary = summarise(Trace("nsys", RANGES), {"decode step": 2.5})
    assert rows(summary)["prefill"]["total"] == 3.0
    assert rows(summary)["decode step"]["x_floor"] == 2.0
    assert rows(summary)["prefill"]["x_floor"] is None
    assert summary["coverage"] == pytest.approx(0.95)
    assert summary["other"] == pytest.approx(0.5)
    assert summary["steps"] == [5.0]
    assert summary["gpu"] is None


def test_kernels_belong_to_the_innermost_range_that_launched_them() -> None:
    kernels = (
        Kernel("gemm", 12.0, 13.0, 11.5),
        Kernel("attend", 17.0, 18.0, 15.5),  # runs after its range, launched within
        Kernel("warm", 1.0, 2.0, 1.0),
    )
    gpu = summarise(Trace("nsys", RANGES, kernels))["gpu"]
    assert {(row["stage"], row["kernel"]) for row in gpu["kernels"]} == {
        ("prefill", "gemm"),
        ("attention", "attend"),
    }
    assert gpu["idle_share"] == pytest.approx(0.8)


def test_a_trace_without_requests_is_refused() -> None:
    with pytest.raises(DyCokeError, match="no request"):
        summarise(Trace("nsys", RANGES[2:]))


def test_torch_traces_with_kernels_are_read(tmp_path: Path) -> None:
    events = [
        {"ph": "X", "cat": "user_annotation", "name": "request", "ts": 0, "dur": 9e6, "pid": 1,
         "tid": 1},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "prefill", "ts": 0, "dur": 9e6, "pid": 0,
         "tid": 7, "args": {}},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1e6, "dur": 10,
         "pid": 1, "tid": 1, "args": {"correlation": 5}},
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 2e6, "dur": 1e6, "pid": 0, "tid": 7,
         "args": {"correlation": 5}},
    ]  # fmt: skip
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    trace = read_torch(path)
    assert [r.name for r in trace.ranges] == ["request"]
    assert trace.kernels == (Kernel("gemm", 2.0, 3.0, 1.0),)


def test_nsys_traces_without_ranges_are_explained(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "empty.sqlite") as base:
        base.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
    with pytest.raises(DyCokeError, match="dycoke-trt\\[profile\\]"):
        read_nsys(tmp_path / "empty.sqlite")


def record(folder: Path) -> Trace:
    """Measured requests of the demo model in this process, after one of warm-up."""
    plan = Plan(
        str(demo_bundle(CONFIG)), str(CLIP), QUESTION, str(folder / "answers.json"),
        source="torch", trace=str(folder / "trace.json.gz"), warmup=1, requests=REQUESTS,
    )  # fmt: skip
    run(plan)
    return read_torch(Path(plan.trace))


def fastest(trace: Trace) -> dict[str, float]:
    """The least duration of each stage: what a busy machine disturbs least."""
    return {
        name: min(r.end - r.start for r in trace.ranges if r.name == name)
        for name in {r.name for r in trace.ranges} - {"request"}
    }


def test_stages_cover_requests_and_a_delay_moves_its_stage_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = record(tmp_path)
    summary = summarise(before)
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert summary["coverage"] > 0.95
    assert summary["requests"] == len(answers) == REQUESTS
    assert {answer["finish"] for answer in answers} == {"end"}
    # The first token comes from the prefill, the last step finds the end token.
    steps = sum(answer["tokens"] for answer in answers)
    assert rows(summary)["decode step"]["count"] == steps
    assert rows(summary)["sample"]["count"] == steps + REQUESTS
    assert rows(summary)["score"]["count"] == rows(summary)["select"]["count"] == steps

    plain, planted = ModelRunner.prefill, 0.5  # stages take milliseconds, 0.1 s on a busy machine

    def late(*args: Any) -> Any:
        time.sleep(planted)  # the fault that is looked for
        return plain(*args)

    monkeypatch.setattr(ModelRunner, "prefill", late)
    was, now = fastest(before), fastest(record(tmp_path))
    assert [name for name in now if now[name] - was[name] > planted / 2] == ["prefill"]


@needs_nsys
def test_profile_with_the_real_nsys(tmp_path: Path) -> None:
    bundle = demo_bundle(CONFIG)
    done = dycoke(
        "profile", "--offline", bundle, "--video", CLIP, QUESTION, "-o", tmp_path,
        "--source", "nsys", "--requests", "2", "--warmup", "1", "--bandwidth", "10", "--flops", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "decode step" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {
        "report.nsys-rep",
        "summary.json",
        "report.html",
    }
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["source"] == "nsys"
    assert summary["requests"] == 2  # warm-up is not recorded
    assert summary["coverage"] > 0.95
    found = rows(summary)
    assert found["decode step"]["count"] == sum(answer["tokens"] for answer in summary["answers"])
    assert found["prefill"]["floor"] > 0
    assert found["prefill"]["x_floor"] == found["prefill"]["p50"] / found["prefill"]["floor"]
    html = (tmp_path / "report.html").read_text()
    assert html == page(summary)
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", html)


def wrapper(folder: Path, script: str) -> Path:
    """A program in nsys's place; $NSYS is the real one, $@ what it was called with."""
    path = folder / "nsys"
    path.write_text(f"#!/bin/sh\nNSYS={shutil.which('nsys')}\n{script}\n")
    path.chmod(0o755)
    return path


BROKEN = "echo '[QuadDCommon::tag_errno_text*] = No such file or directory' >&2; exit 1"
ONCE = (
    "--source", "nsys", "--requests", "1", "--warmup", "0", "--max-tokens", "2",
    "--offline",
)  # fmt: skip


def test_source_nsys_never_falls_back(tmp_path: Path) -> None:
    nsys = wrapper(tmp_path, f"echo x >> {tmp_path}/calls; {BROKEN}")
    done = dycoke(
        "profile", *ONCE, demo_bundle(CONFIG), "--video", CLIP, QUESTION, "-o", tmp_path / "out",
        "--nsys", nsys,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.endswith("recording again") for line in lines] == [True, True, False]
    assert lines[-1] == (
        f"error: {nsys} failed: [QuadDCommon::tag_errno_text*] = No such file or directory"
    )
    assert (tmp_path / "calls").read_text() == "x\n" * 3
    assert not list((tmp_path / "out").glob("trace*"))


def test_source_auto_falls_back_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYCOKE_NSYS", str(wrapper(tmp_path, BROKEN)))
    done = dycoke(
        "profile", "--offline", demo_bundle(CONFIG), "--video", CLIP, QUESTION, "-o", tmp_path,
        "--requests", "1", "--warmup", "0", "--max-tokens", "2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].endswith("recording with torch.profiler instead")
    assert json.loads(done.stdout)["source"] == "torch"
    assert (tmp_path / "trace.json.gz").is_file()


def test_a_failure_of_the_program_is_told_and_not_repeated(tmp_path: Path) -> None:
    run_it = 'shift; while [ "${1#-}" != "$1" ]; do shift; done; "$@"'
    nsys = wrapper(tmp_path, f"echo x >> {tmp_path}/calls; {run_it}")
    video = tmp_path / "no.mp4"
    video.write_text("not a video")
    done = dycoke(
        "profile", *ONCE, demo_bundle(CONFIG), "--video", video, QUESTION, "-o", tmp_path / "out",
        "--nsys", nsys,
    )  # fmt: skip
    assert_one_line(done, "the profiled program failed", str(video))
    assert (tmp_path / "calls").read_text() == "x\n"


@needs_nsys
def test_a_recording_that_nsys_spoils_is_repeated(tmp_path: Path) -> None:
    again = f'[ -e {tmp_path}/once ] && exec $NSYS "$@"; touch {tmp_path}/once; {BROKEN}'
    done = dycoke(
        "profile", *ONCE, demo_bundle(CONFIG), "--video", CLIP, QUESTION, "-o", tmp_path / "out",
        "--nsys", wrapper(tmp_path, again),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0].endswith("recording again")
    assert (tmp_path / "out" / "report.nsys-rep").is_file()


# As the package sitecustomize of the profiled program: the model repository that it starts its
# server on gets a prefill that is late.
LATE_PREFILL = """
import sys

class Late:
    def find_spec(self, name, path=None, target=None):
        if name != "dycoke_trt.triton_repo.launcher":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec
        found = find_spec(name)
        run = found.loader.exec_module
        def exec_module(module):
            run(module)
            plain = module.serving
            def serving(repository, **options):
                with (repository / "tensorrt_llm" / "1" / "model.py").open("a") as model:
                    model.write({late!r})
                return plain(repository, **options)
            module.serving = serving
        found.loader.exec_module = exec_module
        return found

sys.meta_path.insert(0, Late())
"""
LATE = """
import time
from dycoke_trt.runtime.runner import ModelRunner
plain = ModelRunner.prefill
def late(*args):
    time.sleep(PLANTED)
    return plain(*args)
ModelRunner.prefill = late
"""


def record_server(folder: Path) -> tuple[dict[str, Any], Trace]:
    """Requests to a real server under the real nsys: the summary, and what it was made of."""
    done = dycoke(
        "profile", "--server", demo_bundle(CONFIG), "--video", CLIP.with_name("describe.mp4"),
        "What happens?", "-o", folder, "--requests", str(REQUESTS), "--warmup", "1", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {
        "report.nsys-rep", "summary.json", "report.html"
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(done.stdout)
    return summary, read_nsys(find_nsys().export(folder / "report.nsys-rep"))


@needs_nsys
def test_a_server_under_nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary, before = record_server(tmp_path / "plain")
    assert (summary["source"], summary["requests"]) == ("nsys", REQUESTS)
    found = rows(summary)
    assert found.keys() >= {
        "send", "queue", "decode video", "preprocess", "vision+ttm", "prefill", "decode step",
        "score", "select", "attention", "sample", "detokenise",
    }  # fmt: skip
    # Tokens that the client counted; the last step finds the end.
    assert found["decode step"]["count"] == sum(answer["tokens"] for answer in summary["answers"])
    assert found["prefill"]["count"] == found["vision+ttm"]["count"] == REQUESTS
    # The rest is transport between processes, which takes its turn on the cores: more of it where
    # other work runs. docs/profiling.md has shares that were measured.
    assert summary["coverage"] > 0.7

    planted = 0.5
    late = LATE.replace("PLANTED", str(planted))
    (tmp_path / "sitecustomize.py").write_text(LATE_PREFILL.replace("{late!r}", repr(late)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    was, now = fastest(before), fastest(record_server(tmp_path / "late")[1])
    assert [name for name in now if now[name] - was[name] > planted / 2] == ["prefill"]


@needs_nsys
def test_the_importer_that_debian_hides_is_found() -> None:
    found = find_nsys()
    assert re.match(r"\d{4}\.\d", found.version())
    assert found.importer is None or found.importer.name == "QdstrmImporter"


def test_floors_are_those_of_dycoke_floors() -> None:
    """A 0.5B's dimensions, and what the command prints for the same prompt, answer and blocks."""
    from dycoke_trt.bench.profile.report import stage_floors
    from dycoke_trt.bundle.manifest import read_manifest
    from dycoke_trt.cost.dims import preset
    from dycoke_trt.cost.gpus import gpu
    from dycoke_trt.engines.model import model_of_bundle

    manifest = read_manifest(demo_bundle(CONFIG))
    model = replace(model_of_bundle(demo_bundle(CONFIG)), dims=preset("llava-ov-0.5b"))
    large = manifest.model_copy(
        update={
            "vision": manifest.vision.model_copy(update={"tokens_per_frame": 196}),
            "template": manifest.template.model_copy(update={"span_start": 14}),
        }
    )
    plan = Plan(str(demo_bundle(CONFIG)), "", "", "", frames=16)
    text, tokens = 30, 20
    answer = {"prompt_tokens": large.visual_tokens(16) + text, "tokens": tokens}
    mine = stage_floors(plan, large, model, gpu("h200"), answer, 8)
    done = dycoke(
        "floors", "--model", "llava-ov-0.5b", "--gpu", "h200", "--frames", "16", "--json",
        "--k", str(CONFIG.k), "--l", str(CONFIG.l), "--p", str(CONFIG.p), "--text", str(text),
        "--generated", str(tokens // 2), "--tokens-per-block", "8",
    )  # fmt: skip
    settings = json.loads(done.stdout)["settings"]
    printed = {floor["stage"]: floor["seconds"] for floor in settings[-1]["stages"]}
    assert mine == {
        "prefill": printed["prefill"],
        "decode step": printed["decode step"],
        "vision+ttm": printed["vision"] + printed["ttm"],
    }
    # And the column of a report is its median over them.
    summary = summarise(Trace("nsys", RANGES), mine)
    for stage in ("prefill", "decode step"):
        row = rows(summary)[stage]
        assert row["floor"] == mine[stage]
        assert row["x_floor"] == row["p50"] / mine[stage]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--server", "localhost:8001"], "cannot attach"),
        ([], "--offline BUNDLE or --server BUNDLE"),
        (["--offline", "nowhere", "--source", "torch"], "no bundle.json"),
        (["--offline", "nowhere", "--nsys", "/no/nsys"], "no executable file; on Debian"),
        (["--server", "nowhere", "--source", "torch"], "one process"),
        (["--offline", "nowhere", "--requests", "0"], "allowed: --warmup >= 0"),
    ],
)
def test_refusals(tmp_path: Path, options: list[str], said: str) -> None:
    done = dycoke("profile", "--video", CLIP, QUESTION, "-o", tmp_path / "out", *options)
    assert_one_line(done, said)
