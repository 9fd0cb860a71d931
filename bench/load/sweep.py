"""A series of loads on one server, or on two that take turns.

In every round each load runs once on each server; who goes first changes from round to round, so
that neither always finds the machine as the other left it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .compare import compare
from .step_statistics import Counters, add, grown, read_counters, step_rows
from .traffic import Load, Sent, run_load, summarise_load
from .workload import Question

# What is compared between two servers, and what to call it.
METRICS = {
    "ttft": "time to first token, p50",
    "inter_token": "time per later token, p50",
    "end_to_end": "whole answer, p50",
    "requests_per_second": "requests/s",
    "tokens_per_second": "tokens/s",
}


@dataclass(frozen=True)
class Target:
    """A server; name: how reports call it; address: HOST:PORT of its gRPC service."""

    name: str
    address: str


@dataclass
class Cell:
    """One load on one server in one round."""

    target: Target
    load: Load
    round: int
    done: list[Sent] = field(default_factory=list)
    seconds: float = 0.0
    steps: Counters = field(default_factory=dict)


def sweep(
    targets: Sequence[Target],
    loads: Sequence[Load],
    rounds: int,
    questions: Sequence[Question],
    model: str,
    cells: list[Cell],
    *,
    warmup: int = 0,
    on_cell: Callable[[Cell], None] = lambda _: None,
    on_done: Callable[[], None] = lambda: None,
) -> None:
    """Appends a cell for everything that was begun, so that KeyboardInterrupt loses only requests
    in flight. warmup: requests to each server that are not counted. on_cell, on_done: are told
    what begins, and that a request has ended. Raises DyCokeError where no server answers.
    """
    for target in targets:
        read_counters(target.address)
        if warmup:
            asyncio.run(run_load(target.address, model, Load(warmup), questions, []))
    for number in range(rounds):
        for load in loads:
            for target in targets if number % 2 == 0 else reversed(targets):
                cell = Cell(target, load, number)
                cells.append(cell)
                on_cell(cell)
                _run(cell, questions, model, on_done)


def _run(
    cell: Cell, questions: Sequence[Question], model: str, on_done: Callable[[], None]
) -> None:
    before = read_counters(cell.target.address)
    begun = time.perf_counter()
    try:
        asyncio.run(
            run_load(cell.target.address, model, cell.load, questions, cell.done, on_done)
        )  # fmt: skip
    finally:
        cell.seconds = time.perf_counter() - begun
    cell.steps = grown(before, read_counters(cell.target.address))


def summarise_sweep(
    cells: Sequence[Cell], ttft_limit: float | None = None
) -> dict[str, list[dict[str, Any]]]:
    """points: a row per server and load, over all rounds; comparison: of two servers, a row per
    load and metric, second over first."""
    cells = [cell for cell in cells if cell.done]
    points = []
    for target, load in _unique((cell.target, cell.load) for cell in cells):
        of = [cell for cell in cells if (cell.target, cell.load) == (target, load)]
        done = [request for cell in of for request in cell.done]
        points.append(
            {
                "server": target.name,
                "load": load.name,
                "concurrency": load.concurrency if load.rate is None else None,
                "rate": load.rate,
                "rounds": len(of),
                **summarise_load(done, sum(cell.seconds for cell in of), ttft_limit),
                "steps": step_rows(add(cell.steps for cell in of)),
            }
        )
    return {"points": points, "comparison": _compare(cells)}


def _compare(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    targets = _unique(cell.target for cell in cells)
    if len(targets) != 2:
        return []
    summaries = {(c.target, c.load, c.round): summarise_load(c.done, c.seconds) for c in cells}
    rounds = sorted({cell.round for cell in cells})
    rows = []
    for load in _unique(cell.load for cell in cells):
        for metric in METRICS:
            pairs = []
            for number in rounds:
                both = [summaries.get((target, load, number)) for target in targets]
                values = [_value(summary, metric) for summary in both if summary is not None]
                if len(values) == 2 and all(values):  # a round that was cut short has no ratio
                    pairs.append(values)
            if pairs:
                ratio = compare([b for _, b in pairs], [a for a, _ in pairs])
                rows.append({"load": load.name, "metric": metric, **ratio._asdict()})
    return rows


def _value(summary: dict[str, Any], metric: str) -> float:
    """0 where nothing was measured."""
    value = summary[metric]
    return value["p50"] if isinstance(value, dict) else value or 0.0


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
