"""Ranges and kernels of a recorded run, from nsys's SQLite export or torch.profiler's JSON."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...core.errors import DyCokeError
from ...runtime.stages import DOMAIN, REQUEST, STAGES

# Tables of what ran on the GPU, and the name of a row k: kernels, and CUDA graphs where they were
# traced as a whole.
_ON_GPU = {
    "CUPTI_ACTIVITY_KIND_KERNEL": "(SELECT value FROM StringIds WHERE id = k.shortName)",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "'CUDA graph'",
}
NAMES = frozenset(stage.name for stage in (REQUEST, *STAGES))


class Range(NamedTuple):
    """Seconds on the recording's clock. thread: whatever tells threads of all processes apart."""

    name: str
    start: float
    end: float
    thread: int


class Kernel(NamedTuple):
    """A kernel on the GPU; launched: when the host asked for it."""

    name: str
    start: float
    end: float
    launched: float


@dataclass(frozen=True)
class Trace:
    """source: nsys or torch."""

    source: str
    ranges: tuple[Range, ...]
    kernels: tuple[Kernel, ...] = ()


def read_nsys(path: Path) -> Trace:
    """From `nsys export --type sqlite`. Raises DyCokeError for a file without our ranges."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as base:
        tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master")}
        if "NVTX_EVENTS" not in tables:
            raise DyCokeError(
                f"{path}: nsys recorded no range; versions of the package nvtx that are newer than "
                "nsys do that: pip install 'dycoke-trt[profile]'"
            )
        rows = base.execute(
            "SELECT coalesce(e.text, s.value), e.start, e.end, e.globalTid FROM NVTX_EVENTS e "
            "LEFT JOIN StringIds s ON s.id = e.textId "
            "WHERE e.eventType IN (59, 60) AND e.end IS NOT NULL AND e.domainId IN "
            "(SELECT domainId FROM NVTX_EVENTS WHERE eventType = 75 AND text = ?)",  # its creation
            (DOMAIN,),
        )
        ranges = [Range(n, a * 1e-9, b * 1e-9, t) for n, a, b, t in rows if n in NAMES]
        kernels: list[Kernel] = []
        for table, name in _ON_GPU.items():
            if {table, "CUPTI_ACTIVITY_KIND_RUNTIME"} <= tables:
                rows = base.execute(
                    f"SELECT {name}, k.start, k.end, r.start FROM {table} k "
                    "JOIN CUPTI_ACTIVITY_KIND_RUNTIME r ON r.correlationId = k.correlationId "
                    "AND r.globalTid / 0x1000000 = k.globalPid / 0x1000000"  # the same process
                )
                kernels += [Kernel(n, a * 1e-9, b * 1e-9, l * 1e-9) for n, a, b, l in rows]
    return Trace("nsys", tuple(ranges), tuple(kernels))


def read_torch(path: Path) -> Trace:
    """From torch.profiler's export_chrome_trace."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            events = json.load(file)["traceEvents"]
    except (OSError, ValueError, KeyError) as error:
        raise DyCokeError(f"{path}: no trace of torch.profiler ({error})") from None
    whole = [event for event in events if event.get("ph") == "X"]
    launches = {
        event["args"]["correlation"]: event["ts"]
        for event in whole
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event["args"]
    }
    ranges, kernels = [], []
    for event in whole:
        start = event["ts"] * 1e-6
        end = start + event["dur"] * 1e-6
        if event.get("cat") == "user_annotation" and event["name"] in NAMES:
            ranges.append(Range(event["name"], start, end, hash((event["pid"], event["tid"]))))
        elif event.get("cat") == "kernel":
            launched = launches.get(event["args"].get("correlation"), event["ts"]) * 1e-6
            kernels.append(Kernel(event["name"], start, end, launched))
    return Trace("torch", tuple(ranges), tuple(kernels))
