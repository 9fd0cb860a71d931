"""The result of `dycoke bench` as one HTML file: charts over the loads, tables below."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ..html import document, table
from ..profile.page import digits, milliseconds
from .chart import Line, legend, line_chart
from .sweep import METRICS


def load_page(report: dict[str, Any]) -> str:
    """The whole document; report: as `dycoke bench` writes it to bench.json."""
    points: list[dict[str, Any]] = report["points"]
    where, names = report["machine"], list(dict.fromkeys(p["server"] for p in points))
    lead = (
        f"Model {report['model']}, {report['workload']}, {report['rounds']} rounds. "
        f"{where['processor']}, {where['cores']} cores, commit {where['commit']}."
    )
    if report["interrupted"]:
        lead = "Stopped before its end: figures are of the requests that had ended. " + lead
    parts = [f"<p>{escape(lead)}</p>", '<ul class="figures">']
    parts += [f"<li><b>{escape(value)}</b>{escape(name)}</li>" for name, value in _figures(report)]
    parts += ["</ul>", "<h2>Over the loads</h2>"]
    if len(names) > 1:
        parts.append(legend(names))
    parts += [_charts(points, names, report["ttft_limit"])]
    if report["comparison"]:
        first, second = names
        parts += [
            f"<h2>{escape(second)} over {escape(first)}</h2>",
            "<p>Ratios within each round, with the 95 % interval of their geometric mean. Below 1, "
            "times are shorter; above 1, rates are higher.</p>",
            _comparison(report["comparison"]),
        ]
    parts += ["<h2>Latency</h2>", "<p>Milliseconds.</p>", _latency(points)]
    parts += ["<h2>Rates and outcomes</h2>", _rates(report)]
    parts += [
        "<h2>Steps of the server</h2>",
        "<p>Milliseconds, mean per request of each model, from Triton's statistics. Preprocessing, "
        "the vision step on a CPU and the LLM step answer in their own time: of them, these hold "
        "only the hand-over; <code>dycoke profile</code> has the whole.</p>",
        _steps(points),
    ]
    return document(f"Load: {', '.join(names)}", parts)


def _figures(report: dict[str, Any]) -> list[tuple[str, str]]:
    points = report["points"]
    best = max(points, key=lambda p: p["tokens_per_second"])
    sent = sum(p["sent"] for p in points)
    headlines = [
        ("requests answered", f"{sum(p['answered'] for p in points)} of {sent}"),
        (f"most tokens/s, {best['load']}", f"{best['tokens_per_second']:.1f}"),
    ]
    quick = [p for p in points if p["ttft"]]
    if quick:
        first = min(quick, key=lambda p: p["ttft"]["p50"])
        headlines.append(
            (f"least median TTFT, {first['load']}", milliseconds(first["ttft"]["p50"]))
        )
    if report["ttft_limit"] is not None:
        good = max(points, key=lambda p: p["goodput"])
        limit = milliseconds(report["ttft_limit"])
        headlines.append(
            (f"best goodput/s below {limit}, {good['load']}", f"{good['goodput']:.2f}")
        )
    return headlines


def _charts(points: Sequence[dict[str, Any]], names: Sequence[str], limit: float | None) -> str:
    loads = list(dict.fromkeys((p["concurrency"], p["rate"]) for p in points))
    labels = [f"{rate if concurrency is None else concurrency:g}" for concurrency, rate in loads]
    x_title = "arrivals per second" if loads[0][0] is None else "requests at once"
    by_load = {(p["server"], p["concurrency"], p["rate"]): p for p in points}

    def line(name: str, key: str, percent: str = "", scale: float = 1.0) -> list[float | None]:
        figures = [by_load.get((name, *load), {}).get(key) for load in loads]
        values = [v[percent] if isinstance(v, dict) else v for v in figures]
        return [None if v is None else v * scale for v in values]

    charts = [
        line_chart(
            f"{title}, p50 with p90", "ms", x_title, labels,
            [Line(n, line(n, key, "p50", 1e3), line(n, key, "p90", 1e3)) for n in names],
        )
        for title, key in (
            ("Time to first token", "ttft"),
            ("Time per later token", "inter_token"),
            ("Whole answer", "end_to_end"),
        )
    ]  # fmt: skip
    rates = [("Tokens", "tokens_per_second", "per s")]
    if limit is not None:
        rates.append((f"Answers with TTFT below {milliseconds(limit)}", "goodput", "per s"))
    charts += [
        line_chart(title, unit, x_title, labels, [Line(n, line(n, key)) for n in names])
        for title, key, unit in rates
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _comparison(rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        [
            row["load"],
            METRICS[row["metric"]],
            f"{row['value']:.3f}",
            "one round" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}",
            str(row["rounds"]),
        ]
        for row in rows
    ]
    return table(["load", "metric", "ratio", "95 % interval", "rounds"], cells, text=2)


def _latency(points: Sequence[dict[str, Any]]) -> str:
    head = ["load", "server"]
    for short in ("TTFT", "token", "answer"):
        head += [f"{short} {percent}" for percent in ("p50", "p90", "p99")]
    rows = []
    for point in points:
        row = [point["load"], point["server"]]
        for key in ("ttft", "inter_token", "end_to_end"):
            percentiles = point[key] or {}
            row += [
                digits(percentiles[p] * 1e3) if p in percentiles else ""
                for p in ("p50", "p90", "p99")
            ]
        rows.append(row)
    return table(head, rows, text=2)


def _rates(report: dict[str, Any]) -> str:
    limit = report["ttft_limit"]
    head = ["load", "server", "requests/s", "tokens/s", "answered", "cancelled", "errors"]
    rows = [
        [
            point["load"],
            point["server"],
            f"{point['requests_per_second']:.2f}",
            f"{point['tokens_per_second']:.1f}",
            f"{point['answered']} of {point['sent']}",
            str(point["cancelled"]),
            str(sum(point["errors"].values())),
            *([] if limit is None else [f"{point['goodput']:.2f}", f"{point['in_time']:.0%}"]),
        ]
        for point in report["points"]
    ]
    return table([*head, *([] if limit is None else ["goodput/s", "in time"])], rows, text=2)


def _steps(points: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            point["load"],
            point["server"],
            step["model"],
            str(step["count"]),
            digits(step["queue"] * 1e3),
            digits(step["compute"] * 1e3),
        ]
        for point in points
        for step in point["steps"]
    ]
    return table(["load", "server", "model", "requests", "queue", "compute"], rows, text=3)
