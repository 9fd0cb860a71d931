"""One profile: runs the profiled program in a process of its own and puts a report together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...bundle.files import open_bundle
from ...bundle.manifest import Manifest
from ...bundle.record import open_build
from ...core.errors import DyCokeError
from ...cost.floors import Workload, floors
from ...cost.gpus import Gpu
from ...engines.model import Model, dims_of, model_of_bundle
from ...runtime.stages import DECODE_STEP, PREFILL, VISION
from ..machine import machine
from .nsys import Nsys, NsysError
from .page import page
from .program import Plan
from .summary import summarise
from .trace import Trace, read_nsys, read_torch

_PLAN = "plan.json"
_TIMEOUT = 1800.0  # seconds for the whole profiled program
_TRIES = 3  # recordings by an nsys that fails; docs of profile_nsys say how it does


def profile(
    plan: Plan,
    folder: Path,
    *,
    nsys: Nsys | None,
    fall_back: bool = False,
    gpu: Gpu | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes report.nsys-rep (or trace.json.gz), summary.json and report.html; returns the summary.

    nsys: None takes torch.profiler, which sees one process and so not a server; so does fall_back
    where nsys fails. gpu: what floors are for. say: is told when something was recorded again.
    Raises DyCokeError for what a user can mend.
    """
    if plan.mode == "server" and (nsys is None or fall_back):
        raise DyCokeError("a server is several processes: only nsys records them")
    manifest = open_bundle(Path(plan.bundle))
    manifest.visual_tokens(plan.frames)  # refuses a wrong number before the long part
    if not Path(plan.video).is_file():
        raise DyCokeError(f"{plan.video}: no such file")
    folder.mkdir(parents=True, exist_ok=True)
    plan = replace(
        plan,
        answers=str((folder / "answers.json").resolve()),
        trace=str((folder / "trace.json.gz").resolve()),
    )
    trace: Trace | None = None
    if nsys is not None:
        try:
            trace, file = _with_nsys(nsys, plan, folder, say)
        except DyCokeError as error:
            if not fall_back or _failure(plan):
                raise
            say(f"{error}; recording with torch.profiler instead")
            nsys = None
    if trace is None:
        trace, file = _with_torch(replace(plan, source="torch"), folder), Path(plan.trace)
    answers = json.loads(Path(plan.answers).read_text())
    Path(plan.answers).unlink()
    (folder / _PLAN).unlink()
    bounds = None
    if gpu is not None:
        model = model_of_bundle(Path(plan.bundle))
        _, record = open_build(Path(plan.bundle), plan.device)  # as the profiled program took it
        bounds = stage_floors(plan, manifest, model, gpu, answers[-1], record.tokens_per_block)
    summary = {
        **summarise(trace, bounds),
        "answers": answers,
        "plan": {k: v for k, v in asdict(plan).items() if k not in ("answers", "trace", "source")},
        "dycoke": asdict(manifest.config),
        "gpu_of_floors": gpu.name if gpu else None,
        "machine": machine("dycoke-trt", "torch", "onnxruntime", "nvtx"),
        "nsys": nsys.version() if nsys else None,
        "files": [file.name, "summary.json", "report.html"],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (folder / "report.html").write_text(page(summary))
    return summary


def _with_nsys(
    nsys: Nsys, plan: Plan, folder: Path, say: Callable[[str], None]
) -> tuple[Trace, Path]:
    for left in reversed(range(_TRIES)):
        try:
            return _record(nsys, plan, folder)
        except NsysError as error:
            if failure := _failure(plan):
                raise DyCokeError(f"the profiled program failed: {failure}") from None
            if not left:
                raise
            say(f"{error}; recording again")
    raise AssertionError("unreachable")


def _record(nsys: Nsys, plan: Plan, folder: Path) -> tuple[Trace, Path]:
    stem = folder.resolve() / "report"
    for old in (*folder.glob("report.*"), Path(plan.answers)):  # must not stand in for new ones
        old.unlink(missing_ok=True)
    nsys.record(_program(plan, folder), stem, cuda=plan.device != "cpu", timeout=_TIMEOUT)
    report = nsys.report(stem)
    database = nsys.export(report)
    trace = read_nsys(database)
    database.unlink()
    return trace, report


def _failure(plan: Plan) -> str:
    """What the profiled program said about its end; "" where it did not get there or went well."""
    path = Path(plan.answers)
    answers = json.loads(path.read_text()) if path.is_file() else []
    return answers["error"] if isinstance(answers, dict) else ""


def _with_torch(plan: Plan, folder: Path) -> Trace:
    Path(plan.answers).unlink(missing_ok=True)
    try:
        done = subprocess.run(
            _program(plan, folder), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DyCokeError(f"the profiled program was not done after {_TIMEOUT:.0f} s") from None
    if done.returncode:
        why = _failure(plan) or (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DyCokeError(f"the profiled program failed: {why}")
    return read_torch(Path(plan.trace))


def _program(plan: Plan, folder: Path) -> list[str]:
    path = folder.resolve() / _PLAN
    path.write_text(json.dumps(asdict(plan), indent=1) + "\n")
    return [sys.executable, "-m", "dycoke_trt.bench.profile.program", str(path)]


def stage_floors(
    plan: Plan,
    manifest: Manifest,
    model: Model,
    gpu: Gpu,
    answer: dict[str, Any],
    tokens_per_block: int,
) -> dict[str, float]:
    """Least seconds by stage, as `dycoke floors` counts them for this prompt and answer.

    The vision floor needs the tower's dimensions, which are known of published checkpoints only.
    """
    known = dims_of(model)
    text = answer["prompt_tokens"] - manifest.visual_tokens(plan.frames)
    workload = Workload(
        frames=plan.frames,
        text=text,
        generated=answer["tokens"] // 2,  # in context on average
        span_start=min(manifest.template.span_start, text),
        tokens_per_block=tokens_per_block,
    )
    bounds = floors(known or model.dims, gpu, manifest.config, workload)
    by_name = {floor.stage: floor.seconds for floor in bounds.stages}
    known_floors = {PREFILL.name: by_name["prefill"], DECODE_STEP.name: by_name["decode step"]}
    if known is not None:
        known_floors[VISION.name] = by_name["vision"] + by_name["ttm"]
    return known_floors
