"""`dycoke bench`: load on a running server, and what it did to latencies."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import require

if TYPE_CHECKING:
    from ..bench.load import Sent


def bench(
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Its gRPC service.")],
    video: Annotated[Path, typer.Option("--video", help="Video file.")],
    question: Annotated[str, typer.Argument(help="The question, in quotes.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    requests: Annotated[int, typer.Option("--requests", help="How many.")] = 50,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="Closed loop: in flight at once; default 4.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Poisson arrivals per second instead.")
    ] = None,
    frames: Annotated[int, typer.Option("--frames", help="Frames sampled from the video.")] = 16,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer.")] = 64,
    model: Annotated[str, typer.Option("--model", help="dycoke or dycoke_bls.")] = "dycoke",
    seed: Annotated[
        int | None, typer.Option("--seed", help="With --rate: of the arrivals; default 0.")
    ] = None,
) -> None:
    """Load a server in a closed loop or with Poisson arrivals; Ctrl-C keeps what there is."""
    import asyncio
    import time

    require("tritonclient", extra="client")
    from rich.console import Console
    from rich.progress import Progress

    from ..bench.load import Load, run_load, summarise_load
    from ..bench.machine import machine
    from ..core.errors import DyCokeError
    from ..runtime.client import video_inputs

    if rate is not None and concurrency is not None:
        raise DyCokeError("--rate and --concurrency are two kinds of load; give one of them")
    if rate is None and seed is not None:
        raise DyCokeError("--seed has no effect without --rate")
    load = Load(requests, 4 if concurrency is None else concurrency, rate, seed or 0)
    values = {
        "text_input": question.encode(),
        "max_tokens": max_tokens,
        "stream": True,
        "return_num_output_tokens": True,
        **video_inputs(video, frames),
    }
    done: list[Sent] = []
    begun = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("requests", total=requests)
        advance = progress.advance
        try:
            seconds = asyncio.run(
                run_load(server, model, load, lambda _: values, done, lambda: advance(task))
            )
        except KeyboardInterrupt:
            seconds = time.perf_counter() - begun
    if not done:
        raise DyCokeError(f"{server}: stopped before the first request had ended")
    summary = {
        **summarise_load(load, done, seconds),
        "model": model,
        "frames": frames,
        "machine": machine("dycoke-trt", "tritonclient"),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.json").write_text(json.dumps(summary, indent=1) + "\n")
    _write_csv(output / "requests.csv", done)
    _print(summary)
    if summary["answered"] == 0:
        raise typer.Exit(1)


def _write_csv(path: Path, done: list[Sent]) -> None:
    names = [f.name for f in fields(done[0]) if f.name != "gaps"]
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, names, extrasaction="ignore")
        rows.writeheader()
        rows.writerows(asdict(request) for request in done)


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{summary['answered']} of {summary['sent']} requests answered: ms")
    for column in ("", "p50", "p90", "p99"):
        table.add_column(column, justify="right" if column else "left")
    names = (("time to first token", "ttft"), ("per later token", "inter_token"))
    for label, name in (*names, ("whole answer", "end_to_end")):
        found = summary[name] or {}
        table.add_row(label, *(f"{value * 1e3:.1f}" for value in found.values()))
    console = Console()
    console.print(table)
    console.print(
        f"{summary['requests_per_second']:.2f} requests/s, "
        f"{summary['tokens_per_second']:.1f} tokens/s"
    )
    for message, count in summary["errors"].items():
        console.print(f"{count} x {message}", style="red")
