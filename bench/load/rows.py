"""requests.csv of `dycoke bench`: a row per request that has ended."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from .sweep import Cell

COLUMNS = (
    "server", "round", "load", "sent", "outcome", "ttft", "inter_token", "total", "tokens", "error",
)  # fmt: skip


def write_requests(path: Path, cells: Iterable[Cell]) -> None:
    """Seconds; `sent` from the beginning of its load, `inter_token` the mean of one answer."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for cell in cells:
            for request in cell.done:
                gaps = request.gaps
                rows.writerow(
                    [
                        cell.target.name,
                        cell.round,
                        cell.load.name,
                        request.sent,
                        request.outcome,
                        "" if request.first is None else request.first,
                        sum(gaps) / len(gaps) if gaps else "",
                        request.total,
                        request.tokens,
                        request.error,
                    ]
                )
