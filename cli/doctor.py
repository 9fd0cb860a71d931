"""`dycoke doctor`: what this machine has, what works on it, and what to run next."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson, refuse_idle

if TYPE_CHECKING:
    from ..engines.doctor import Finding

_BINDINGS_TIMEOUT = 300  # seconds; importing TensorRT-LLM alone takes tens of them


def doctor(
    as_json: AsJson = False,
    try_plugin: Annotated[
        Path | None,
        typer.Option(
            "--try-plugin", metavar="BUNDLE", help="Run an engine of one plugin, by each interface."
        ),
    ] = None,
    plugin: Annotated[
        Path | None, typer.Option("--plugin", help="With --try-plugin: the plugin library.")
    ] = None,
) -> None:
    """Look at GPU, driver, TensorRT, Triton and plugin; say what works here and what to run."""
    from ..engines.doctor import CONTAINERS, examine, matching_container
    from ..runtime.installed import installed

    if try_plugin is None:
        refuse_idle("without --try-plugin", plugin=plugin)
    else:
        _try(try_plugin, plugin, as_json=as_json)
        return
    findings = [*examine(), _bindings(), *_triton()]
    works = abilities({finding.name for finding in findings if finding.status != "missing"})
    here = installed()
    match = matching_container(here.tensorrt_llm, here.tensorrt)
    if as_json:
        report = {
            "findings": [asdict(finding) for finding in findings],
            "works": {name: able for name, (able, _) in works.items()},
            "next": [advice for _, advice in works.values()],
            "containers": [asdict(container) for container in CONTAINERS],
            "container": match.tag if match else None,
        }
        typer.echo(json.dumps(report, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title="this machine", title_justify="left")
    for column in ("", "", "found", "note"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "warning": "yellow", "missing": "dim"}
    for finding in findings:
        status = f"[{colours[finding.status]}]{finding.status}[/]"
        table.add_row(finding.name, status, escape(finding.value), escape(finding.note))
    console.print(table)
    table = Table(title="containers nvcr.io/nvidia/tritonserver", title_justify="left")
    for column in ("tag -trtllm-python-py3", "Triton", "TensorRT-LLM", "TensorRT", "CUDA"):
        table.add_column(column)
    for c in CONTAINERS:
        table.add_row(c.tag, c.triton, c.tensorrt_llm, c.tensorrt, c.cuda)
    console.print(table)
    if match:
        console.print(f"this machine has the versions of {match.tag}")
    for name, (able, advice) in works.items():
        answer = "[green]yes[/]" if able else "[dim]no[/] "
        console.print(f"{answer} {name}: {escape(advice)}", soft_wrap=True)


def _try(bundle: Path, plugin: Path | None, *, as_json: bool) -> None:
    from ..engines.try_plugin import advice, try_plugin

    trials = try_plugin(bundle, plugin)
    if as_json:
        report = {"trials": [asdict(trial) for trial in trials], "next": advice(trials)}
        typer.echo(json.dumps(report, indent=2))
    else:
        for trial in trials:
            typer.echo(f"{trial.interface}: {'works' if trial.works else trial.reason}")
        typer.echo(advice(trials))
    if not any(trial.works for trial in trials):
        raise typer.Exit(1)


def _bindings() -> Finding:
    """TensorRT-LLM's executor bindings, in a process of their own: they print, and may end it."""
    import subprocess
    import sys
    from importlib.util import find_spec

    from ..engines.doctor import Finding

    name = "executor bindings"
    if find_spec("tensorrt_llm") is None:
        return Finding(name, "missing", "none", "TensorRT-LLM is not installed")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dycoke_trt.runtime.trtllm.check_bindings"],
            capture_output=True, text=True, check=False, timeout=_BINDINGS_TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Finding(name, "missing", "none", f"no answer in {_BINDINGS_TIMEOUT} s")
    if done.returncode == 0:
        return Finding(name, "ok", "every configuration that serving makes was made")
    told = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    note = f"--llm executor will not work: {told[-1].strip()}"
    return Finding(name, "warning", f"exit status {done.returncode}", note)


def abilities(there: set[str]) -> dict[str, tuple[bool, str]]:
    """What works with what is `there` (names of findings): name -> (works, what to run)."""
    from ..runtime.installed import CONTAINER

    engines = {"GPU", "TensorRT", "TensorRT-LLM", "Polygraphy"}

    def one(needed: set[str], then: str, otherwise: str) -> tuple[bool, str]:
        lacking = sorted(needed - there)
        return (True, then) if not lacking else (False, f"needs {', '.join(lacking)}; {otherwise}")

    return {
        "answers on the CPU": one(
            {"ONNX Runtime"},
            "dycoke build BUNDLE --target cpu; dycoke ask BUNDLE --video FILE QUESTION",
            "pip install 'dycoke-trt[cpu]'",
        ),
        "native backend on the GPU": one(
            {"GPU", "PyTorch for CUDA", "Triton language"},
            "dycoke build BUNDLE --target cuda; dycoke ask BUNDLE --target cuda --video FILE "
            "QUESTION",
            "pip install 'dycoke-trt[kernels]' on a GPU",
        ),
        "building engines": one(
            engines | {"plugin"},
            "dycoke build BUNDLE --target this-gpu",
            f"use {CONTAINER}, then: dycoke plugin build",
        ),
        "vision engines for other GPUs, here": one(
            {"TensorRT for RTX"},
            "dycoke build BUNDLE --vision rtx --target rtx4090 (docs/rtx.md)",
            "pip install 'dycoke-trt[rtx]'",
        ),
        "serving": one(
            {"Triton server"}, "dycoke serve BUNDLE", "pip install 'dycoke-trt[server]'"
        ),
        "plans of engines": (True, "dycoke build BUNDLE --target h100 --dry-run"),
    }


def _triton() -> list[Finding]:
    """The server, its version's known holes, and its backends, which decide what runs engines."""
    from ..core.errors import DyCokeError
    from ..engines.doctor import Finding
    from ..triton_repo.repository import parse_version
    from ..triton_repo.tritonserver import find_tritonserver
    from ..triton_repo.trtllm import CPP_BACKEND, EXECUTOR
    from ..triton_repo.vision_config import PLAN_BACKEND
    from ..triton_repo.weaknesses import weaknesses_of

    try:
        server = find_tritonserver()
        findings = [Finding("Triton server", "ok", f"{server.version} ({server.source})")]
    except DyCokeError as error:
        return [Finding("Triton server", "missing", "none", str(error))]
    instead = {
        CPP_BACKEND: f"engines are served with --llm {EXECUTOR}, a Python model",
        PLAN_BACKEND: "the vision plan is run by a Python model, as in NVIDIA's own images",
    }
    for backend, note in instead.items():
        library, name = server.backend_library(backend), f"backend {backend}"
        if library.is_file():
            findings.append(Finding(name, "ok", str(library)))
        else:
            findings.append(Finding(name, "missing", "none", note))
    findings += [
        Finding(
            weakness.cves,
            "warning",
            f"{weakness.what}; closed in {weakness.release}",
            f"shield: {weakness.shield}",
        )
        for weakness in weaknesses_of(parse_version(server.version))
    ]
    return findings
