"""`dycoke profile`: where the time of a request goes, by stage and by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.extras import require
from .options import AsJson, Bandwidth, Frames, MaxTokens, Tflops, refuse_idle
from .tables import print_table

if TYPE_CHECKING:
    from ..cost.gpus import Gpu


def profile(
    question: Annotated[str, typer.Argument(help="The question, in quotes.", show_default=False)],
    video: Annotated[Path, typer.Option("--video", help="Video file.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the report.", show_default=False)
    ],
    offline: Annotated[
        Path | None, typer.Option("--offline", metavar="BUNDLE", help="Profile one process.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="BUNDLE", help="Profile a server that is started on it."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda with --offline.")] = "cpu",
    frames: Frames = 16,
    max_tokens: MaxTokens = 64,
    warmup: Annotated[int, typer.Option("--warmup", help="Requests before recording.")] = 2,
    requests: Annotated[int, typer.Option("--requests", help="Requests that are recorded.")] = 5,
    source: Annotated[
        str, typer.Option("--source", help="auto, nsys, or torch (torch.profiler).")
    ] = "auto",
    nsys: Annotated[Path | None, typer.Option("--nsys", help="The binary of nsys.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Floors of this GPU.")] = None,
    bandwidth: Bandwidth = None,
    tflops: Tflops = None,
    as_json: AsJson = False,
) -> None:
    """Profile requests about a video with nsys: a report, a table and a page of stages."""
    from ..core.errors import DyCokeError

    mode, bundle = _mode(offline, server)
    if device not in ("cpu", "cuda") or (mode == "server" and device != "cpu"):
        raise DyCokeError(f"--device {device} is not allowed; allowed: cpu, or cuda with --offline")
    if warmup < 0 or requests < 1 or max_tokens < 1:
        raise DyCokeError(
            f"--warmup {warmup} --requests {requests} --max-tokens {max_tokens} is not allowed; "
            "allowed: --warmup >= 0, the others >= 1"
        )
    if source not in ("auto", "nsys", "torch"):
        raise DyCokeError(f"--source {source!r} is not allowed; allowed: auto, nsys, torch")
    if mode == "server" and source == "torch":
        raise DyCokeError(
            "--source torch sees one process, a server is several; leave it out, or use --offline"
        )
    if device == "cpu":
        require("onnxruntime", extra="cpu")
    if mode == "server":
        require("tritonclient", extra="server")
    from ..bench.profile.program import Plan
    from ..bench.profile.report import profile as record

    plan = Plan(
        bundle=str(bundle), video=str(video), question=question, answers="", mode=mode,
        device=device, frames=frames, max_tokens=max_tokens, warmup=warmup, requests=requests,
    )  # fmt: skip
    if mode == "server" or nsys is not None:
        source = "nsys" if source == "auto" else source
    profiler = _find(source, nsys)
    floors_of = _gpu(gpu, bandwidth, tflops)
    summary = record(
        plan, output, nsys=profiler, fall_back=source == "auto", gpu=floors_of, say=_warn
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _print(summary, output)


def _mode(offline: Path | None, server: str | None) -> tuple[Any, Path]:
    from ..core.errors import DyCokeError

    if (offline is None) == (server is None):
        raise DyCokeError("give either --offline BUNDLE or --server BUNDLE")
    if offline is not None:
        return "offline", offline
    assert server is not None
    host, colon, port = server.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        raise DyCokeError(
            f"--server {server}: nsys cannot attach to a server that runs already; give the bundle "
            "directory, and a server of its own is started under nsys"
        )
    return "server", Path(server)


def _find(source: str, path: Path | None) -> Any:
    """nsys with what it needs, or None for torch.profiler, which `auto` takes without them."""
    from importlib.util import find_spec

    from ..bench.profile.nsys import find_nsys
    from ..core.errors import DyCokeError

    if source == "torch":
        refuse_idle("with --source torch", nsys=path)
        return None
    try:
        profiler = find_nsys(path)
        if find_spec("nvtx") is None:
            raise DyCokeError("nvtx is not installed; run: pip install 'dycoke-trt[profile]'")
    except DyCokeError as error:
        if source == "nsys":
            raise
        _warn(f"{error}: recording with torch.profiler")
        return None
    return profiler


def _gpu(name: str | None, bandwidth: float | None, tflops: float | None) -> Gpu | None:
    from .cost import device

    if name is None and bandwidth is None and tflops is None:
        return None
    gpu: Gpu = device(name, bandwidth, tflops)
    return gpu


def _warn(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, style="yellow", markup=False, soft_wrap=True)


def _print(summary: dict[str, Any], output: Path) -> None:
    rows = []
    for row in summary["stages"]:
        times = (f"{row[key] * 1e3:.2f}" for key in ("total", "own", "p50", "p99"))
        floor = "" if row["x_floor"] is None else f"{row['x_floor']:.1f}"
        name = f"  {row['stage']}" if row["within"] else row["stage"]
        rows.append((name, str(row["count"]), *times, f"{row['share']:.1%}", floor))
    other = summary["other"]
    share = other / summary["request"]["total"]
    rows.append(("other", "", f"{other * 1e3:.2f}", "", "", "", f"{share:.1%}", ""))
    title = f"{summary['requests']} requests, recorded by {summary['source']}: ms"
    columns = ("stage", "count", "total", "own", "p50", "p99", "share", "x floor")
    print_table(title, columns, rows)
    if summary["gpu"]:
        typer.echo(f"GPU idle: {summary['gpu']['idle_share']:.1%} of the requests' time")
    for name in summary["files"]:
        typer.echo(str(output / name))
