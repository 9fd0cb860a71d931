"""`dycoke bench`: load on one server, or on two in turn, and what it did to latencies."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.extras import require
from .options import Frames, MaxTokens, Video, refuse_idle
from .tables import print_table

if TYPE_CHECKING:
    from ..bench.load.sweep import Cell, Target
    from ..bench.load.traffic import Load
    from ..bench.load.workload import Question

INTERRUPTED = 130  # exit status, as shells give it after Ctrl-C


def bench(
    server: Annotated[
        str,
        typer.Option("--server", metavar="TARGET", help="HOST:PORT of gRPC, or a built bundle."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    question: Annotated[
        str | None, typer.Argument(help="With --video: the question, in quotes.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="TARGET", help="A second server, taking turns."),
    ] = None,
    video: Video = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="shapes: held-out synthetic videos.")
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option("--questions", help="JSONL file, an object with video and question a line."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="With --suite: how many; default 32.")
    ] = None,
    requests: Annotated[int, typer.Option("--requests", help="Per load, server and round.")] = 50,
    concurrency: Annotated[
        str | None,
        typer.Option("--concurrency", help="Closed loop: in flight at once, as in 1,4,16; or 4."),
    ] = None,
    rate: Annotated[
        str | None, typer.Option("--rate", help="Poisson arrivals per second instead, as in 1,2.5.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Repeats of all loads; default 1, 5 for two.")
    ] = None,
    ttft_limit: Annotated[
        float | None, typer.Option("--ttft-limit", help="Goodput: first tokens within so many ms.")
    ] = None,
    warmup: Annotated[int, typer.Option("--warmup", help="Requests before measuring.")] = 2,
    frames: Frames = 16,
    max_tokens: MaxTokens = 64,
    model: Annotated[str, typer.Option("--model", help="dycoke or dycoke_bls.")] = "dycoke",
    seed: Annotated[
        int | None, typer.Option("--seed", help="With --rate: of the arrivals; default 0.")
    ] = None,
) -> None:
    """Load a server in a closed loop or with Poisson arrivals; Ctrl-C keeps what there is."""
    require("tritonclient", extra="client")
    from ..bench.load.sweep import sweep
    from ..bench.machine import machine
    from ..core.errors import DyCokeError

    if requests < 1 or warmup < 0 or (rounds is not None and rounds < 1):
        raise DyCokeError(
            f"--requests {requests} --rounds {rounds} --warmup {warmup} is not allowed; allowed: "
            "--warmup >= 0, the others >= 1"
        )
    if ttft_limit is not None and not 0 < ttft_limit < float("inf"):
        raise DyCokeError(f"--ttft-limit {ttft_limit} is not allowed; allowed: milliseconds > 0")
    loads = _loads(requests, concurrency, rate, seed)
    asked, workload = _questions(
        question, video, suite, questions, samples, frames, max_tokens,
        cache(lambda: _frame_size(server, model)),
    )  # fmt: skip
    repeats = rounds or (1 if against is None else 5)
    cells: list[Cell] = []
    interrupted = False
    with _servers([server, *([] if against is None else [against])]) as targets:
        total = requests * len(loads) * len(targets) * repeats
        with _progress(total) as (on_cell, on_done):
            try:
                sweep(
                    targets, loads, repeats, asked, model, cells,
                    warmup=warmup, on_cell=on_cell, on_done=on_done,
                )  # fmt: skip
            except KeyboardInterrupt:
                interrupted = True
    if not any(cell.done for cell in cells):
        raise DyCokeError(f"{server}: stopped before the first request had ended")
    packages = ("dycoke-trt", "tritonclient", "nvidia-pytriton", "torch", "onnxruntime")
    report = {
        "model": model,
        "servers": [{"name": t.name, "target": w} for t, w in zip(targets, [server, against])],  # noqa: B905
        "workload": workload,
        "frames": frames,
        "max_tokens": max_tokens,
        "rounds": repeats,
        "ttft_limit": None if ttft_limit is None else ttft_limit * 1e-3,
        "interrupted": interrupted,
        "machine": machine(*packages),
    }
    _write(report, cells, output)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not any(request.outcome == "answered" for cell in cells for request in cell.done):
        raise typer.Exit(1)


def _loads(
    requests: int, concurrency: str | None, rate: str | None, seed: int | None
) -> list[Load]:
    from ..bench.load.traffic import Load
    from ..core.errors import DyCokeError

    if rate is not None and concurrency is not None:
        raise DyCokeError("--rate and --concurrency are two kinds of load; give one of them")
    if rate is None:
        if seed is not None:
            raise DyCokeError("--seed has no effect without --rate")
        return [Load(requests, n) for n in _numbers("--concurrency", concurrency or "4", int)]
    return [Load(requests, rate=r, seed=seed or 0) for r in _numbers("--rate", rate, float)]


def _numbers(option: str, text: str, kind: Any) -> list[Any]:
    from ..core.errors import DyCokeError

    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or len(set(values)) < len(values):
        raise DyCokeError(
            f"{option} {text!r} is not allowed; allowed: different numbers, as in 1,2"
        )
    return values


def _questions(
    question: str | None,
    video: Path | None,
    suite: str | None,
    file: Path | None,
    samples: int | None,
    frames: int,
    max_tokens: int,
    size: Callable[[], int | None],
) -> tuple[list[Question], str]:
    """What is asked, and how a report calls it. size: of frames, of videos that are too large."""
    from ..bench.load.workload import question_about, read_questions, shapes_questions
    from ..core.errors import DyCokeError

    if [video, suite, file].count(None) != 2 or (question is None) != (video is None):
        raise DyCokeError(
            'say what to ask, one of: --video FILE "QUESTION", --suite shapes, --questions FILE'
        )
    if suite not in (None, "shapes"):
        raise DyCokeError(f"--suite {suite!r} is not allowed; allowed: shapes")
    if suite is None:
        refuse_idle("without --suite", samples=samples)
    else:
        require("av", extra="demo")
        questions = shapes_questions(32 if samples is None else samples, frames, max_tokens)
        return questions, f"{len(questions)} held-out samples of the shapes suite"
    if file is not None:
        questions = read_questions(file, frames, max_tokens, size)
        return questions, f"{len(questions)} questions of {file.name}"
    assert video is not None
    assert question is not None
    asked = question_about(video, question, frames, max_tokens, size)
    return [asked], f"{video.name}: {question}"


_ADDRESS = re.compile(r"[^/\s]+:\d{1,5}")


def _frame_size(server: str, model: str) -> int | None:
    """What the server of an address, or of a bundle, resizes frames to."""
    from ..bundle.files import open_bundle
    from ..runtime.client import image_size

    if _ADDRESS.fullmatch(server):
        return image_size(server, model)
    return open_bundle(Path(server)).vision.image_size


@contextmanager
def _servers(wanted: Sequence[str]) -> Iterator[list[Target]]:
    """Servers by their addresses; those of bundles are started, and end with the block."""
    from contextlib import ExitStack

    from ..bench.load.sweep import Target
    from ..bundle.files import open_bundle
    from ..core.errors import DyCokeError
    from ..triton_repo.bundle_server import serving_bundle

    if len(set(wanted)) < len(wanted):
        raise DyCokeError(f"--against {wanted[1]} is what --server names; a comparison needs two")
    running = [bool(_ADDRESS.fullmatch(target)) for target in wanted]
    for target, runs in zip(wanted, running, strict=True):
        if not runs:
            open_bundle(Path(target))  # refused before any server starts
    with ExitStack() as stack:
        targets = []
        for target, runs in zip(wanted, running, strict=True):
            if runs:
                targets.append(Target(target, target))
            else:
                server = stack.enter_context(serving_bundle(Path(target)))
                targets.append(Target(Path(target).resolve().name, server.grpc))
        if len({target.name for target in targets}) < len(targets):
            targets = [Target(t, target.address) for t, target in zip(wanted, targets, strict=True)]
        yield targets


@contextmanager
def _progress(total: int) -> Iterator[tuple[Any, Any]]:
    """A bar on stderr; what to tell it of a cell that begins, and of a request that has ended."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("warm-up", total=total)

        def on_cell(cell: Cell) -> None:
            text = f"round {cell.round + 1}: {cell.target.name}, {cell.load.name}"
            progress.update(task, description=text)

        yield on_cell, lambda: progress.advance(task)


def _write(report: dict[str, Any], cells: Sequence[Cell], output: Path) -> None:
    from ..bench.load.page import load_page
    from ..bench.load.rows import write_requests
    from ..bench.load.sweep import summarise_sweep

    report |= summarise_sweep(cells, report["ttft_limit"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    write_requests(output / "requests.csv", cells)
    (output / "report.html").write_text(load_page(report))
    _print(report)
    for name in ("bench.json", "requests.csv", "report.html"):
        typer.echo(str(output / name))


def _print(report: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console

    from ..bench.load.sweep import METRICS
    from ..bench.profile.page import digits

    limit = report["ttft_limit"]
    columns = ["load", "server", "first token", "later token", "answer", "req/s", "tok/s", "ok"]
    columns += [] if limit is None else ["good/s"]
    rows = []
    for point in report["points"]:
        times = (
            "/".join(digits(value * 1e3) for value in (point[key] or {}).values())
            for key in ("ttft", "inter_token", "end_to_end")
        )
        rates = (point["requests_per_second"], point["tokens_per_second"])
        good = [] if limit is None else [digits(point["goodput"])]
        answered = f"{point['answered']}/{point['sent']}"
        figures = (*times, *map(digits, rates), answered, *good)
        rows.append((point["load"], point["server"], *figures))
    title = "ms at p50/p90/p99"
    print_table(title, columns, rows, text=2, box=SIMPLE, padding=(0, 1, 0, 0))
    console = Console(highlight=False)
    for row in report["comparison"]:
        interval = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
        ratio = f"{row['value']:.3f}{interval}"
        names = " over ".join(server["name"] for server in reversed(report["servers"]))
        console.print(f"{row['load']}, {METRICS[row['metric']]}: {names} {ratio}", markup=False)
    for point in report["points"]:
        for message, count in point["errors"].items():
            console.print(f"{point['load']}: {count} x {message}", style="red", markup=False)
