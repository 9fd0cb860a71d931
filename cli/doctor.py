"""`dycoke doctor`: what this machine has, what works on it, and what to run next."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from .options import AsJson

if TYPE_CHECKING:
    from ..engines.doctor import Finding


def doctor(as_json: AsJson = False) -> None:
    """Look at GPU, driver, TensorRT, Triton and plugin; say what works here and what to run."""
    from ..engines.doctor import CONTAINERS, examine, matching_container
    from ..engines.installed import installed

    findings = [*examine(), *_triton()]
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


def abilities(there: set[str]) -> dict[str, tuple[bool, str]]:
    """What works with what is `there` (names of findings): name -> (works, what to run)."""
    from ..engines.installed import CONTAINER

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
