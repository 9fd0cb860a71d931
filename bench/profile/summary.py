"""A trace as figures: stages of the requests in it, tokens, and what the GPU did.

Warm-up requests have no range `request`, so what they did is left out. Times are seconds. `own` is
a stage's time without the stages nested in it on the same thread, so that own times of one process
add up. In a server stages of several processes overlap, and shares may add up to more than one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import quantiles
from typing import Any

from ...core.errors import DyCokeError
from ...runtime.stages import ATTENTION, DECODE_STEP, QUEUE, REQUEST, SCORE, SELECT, STAGES
from .trace import Kernel, Range, Trace

# Ranges within a decode step, which is the only place where they are.
_INNER = {SCORE.name, SELECT.name, ATTENTION.name}


def summarise(trace: Trace, floors: Mapping[str, float] | None = None) -> dict[str, Any]:
    """stages: a row per stage that ran; `other`: request time outside every stage; coverage: the
    rest's share. floors: least seconds of one `stage`, as `dycoke floors` gives them.

    Raises DyCokeError for a trace without a request.
    """
    windows = sorted(r for r in trace.ranges if r.name == REQUEST.name)
    windows.sort(key=lambda window: window.start)
    if not windows:
        raise DyCokeError("the trace holds no request; was it recorded with `dycoke profile`?")
    inside = [
        r for r in trace.ranges
        if r.name != REQUEST.name and any(w.start <= r.start < w.end for w in windows)
    ]  # fmt: skip
    wall = sum(w.end - w.start for w in windows)
    own = own_times(inside)
    rows = []
    for stage in (stage.name for stage in STAGES):
        times = sorted(r.end - r.start for r in inside if r.name == stage)
        if not times:
            continue
        floor = (floors or {}).get(stage)
        median = percentile(times, 50)
        rows.append(
            {
                "stage": stage,
                "within": DECODE_STEP.name if stage in _INNER else None,
                "count": len(times),
                "total": sum(times),
                "own": own[stage],
                "p50": median,
                "p99": percentile(times, 99),
                "share": own[stage] / wall,
                "floor": floor,
                "x_floor": median / floor if floor else None,
            }
        )
    covered = sum(_length([r for r in inside if r.start < w.end], w) for w in windows)
    middle = sorted(windows, key=lambda w: w.end - w.start)[len(windows) // 2]
    return {
        "source": trace.source,
        "requests": len(windows),
        "request": _spread([w.end - w.start for w in windows]),
        "stages": rows,
        "other": wall - covered,
        "coverage": covered / wall,
        "timeline": _timeline(middle, inside),
        "steps": _steps(middle, inside),
        "gpu": _gpu(trace.kernels, inside, windows),
    }


def own_times(ranges: Iterable[Range]) -> dict[str, float]:
    """Seconds by name, without what is nested on the same thread. `queue` is no host work and
    neither takes from others nor is taken from."""
    own: dict[str, float] = defaultdict(float)
    threads: dict[int, list[Range]] = defaultdict(list)
    for r in ranges:
        if r.name == QUEUE.name:
            own[r.name] += r.end - r.start
        else:
            threads[r.thread].append(r)
    for on_thread in threads.values():
        open_ranges: list[Range] = []
        for r in sorted(on_thread, key=lambda r: (r.start, -r.end)):
            while open_ranges and open_ranges[-1].end <= r.start:
                open_ranges.pop()
            if open_ranges:
                own[open_ranges[-1].name] -= r.end - r.start
            own[r.name] += r.end - r.start
            open_ranges.append(r)
    return own


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Of values in ascending order, interpolated."""
    if len(ordered) == 1:
        return ordered[0]
    return quantiles(ordered, n=100, method="inclusive")[percent - 1]


def _spread(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p50": percentile(ordered, 50), "p99": percentile(ordered, 99), "total": sum(ordered)}


def _length(spans: Iterable[Range | Kernel], window: Range) -> float:
    """Seconds of the window in which at least one span is open."""
    total, upto = 0.0, window.start
    for span in sorted(spans, key=lambda s: s.start):
        end = min(span.end, window.end)
        if end > upto:
            total += end - max(span.start, upto)
            upto = end
    return total


def _timeline(window: Range, ranges: Iterable[Range]) -> list[dict[str, Any]]:
    """Stages of one request, from its beginning; what is inside a decode step is left out."""
    return [
        {"stage": r.name, "start": r.start - window.start, "end": r.end - window.start}
        for r in sorted(ranges, key=lambda r: r.start)
        if window.start <= r.start < window.end and r.name not in _INNER
    ]


def _steps(window: Range, ranges: Iterable[Range]) -> list[float]:
    """Seconds of each decode step of one request."""
    steps = sorted(r for r in ranges if r.name == DECODE_STEP.name)
    return [r.end - r.start for r in steps if window.start <= r.start < window.end]


def _gpu(
    kernels: Sequence[Kernel], ranges: Sequence[Range], windows: Sequence[Range]
) -> dict[str, Any] | None:
    """Kernel time by the stage whose range was the innermost when the host launched it."""
    running = [k for k in kernels if any(w.start <= k.start < w.end for w in windows)]
    if not running:
        return None
    ordered = sorted(
        (r for r in ranges if r.name != QUEUE.name), key=lambda r: r.end - r.start
    )  # the shortest range around a launch is the innermost
    by_stage: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for kernel in running:
        stage = next((r.name for r in ordered if r.start <= kernel.launched < r.end), "other")
        by_stage[stage][kernel.name].append(kernel.end - kernel.start)
    busy = sum(_length([k for k in running if k.start < w.end], w) for w in windows)
    rows = [
        {"stage": stage, "kernel": name, "count": len(times), "total": sum(times)}
        for stage, names in by_stage.items()
        for name, times in names.items()
    ]
    return {
        "idle_share": 1 - busy / sum(w.end - w.start for w in windows),
        "kernels": sorted(rows, key=lambda row: -row["total"]),
    }
