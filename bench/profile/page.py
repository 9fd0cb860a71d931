"""A profile's summary as one HTML file: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from ...core.config import DyCokeConfig
from ...runtime.stages import STAGES
from ..html import document, table

_COLOURS = (
    "#4f9fb3", "#9aa0a6", "#0f9d8a", "#e8a33d", "#7b61d1", "#2f7de1", "#d1495b",
    "#8c6d46", "#8c6d46", "#8c6d46", "#c06ab3", "#5a9e3d",
)  # fmt: skip
COLOUR = {stage.name: colour for stage, colour in zip(STAGES, _COLOURS, strict=True)}


def page(summary: dict[str, Any]) -> str:
    """The whole document; summary: as `profile` writes it to summary.json."""
    plan, request = summary["plan"], summary["request"]
    tokens = summary["answers"][-1]["tokens"]
    where = summary["machine"]
    lead = (
        f"{summary['requests']} requests after {plan['warmup']} of warm-up, "
        f"{plan['mode']}, {plan['device']}, {plan['frames']} frames, tokens: {tokens}. "
        f"{DyCokeConfig(**summary['dycoke'])}. "
        f"{where['processor']}, {where['cores']} cores, commit {where['commit']}."
    )
    figures = [
        ("median request", milliseconds(request["p50"])),
        ("99th percentile", milliseconds(request["p99"])),
        ("in named stages", f"{summary['coverage']:.1%}"),
    ]
    if summary["steps"]:
        middle = sorted(summary["steps"])[len(summary["steps"]) // 2]
        figures.append(("median decode step", milliseconds(middle)))
    if summary["gpu"]:
        figures.append(("GPU idle", f"{summary['gpu']['idle_share']:.1%}"))
    parts = [
        f"<p>{escape(lead)}</p>",
        '<ul class="figures">',
        *(f"<li><b>{escape(value)}</b>{escape(name)}</li>" for name, value in figures),
        "</ul>",
        "<h2>One request</h2>",
        "<p>The request of median length; time runs from left to right.</p>",
        _timeline(summary["timeline"]),
        "<h2>Stages</h2>",
        "<p>Own time leaves out what is nested; shares are of own time, in all requests. Score, "
        "select and attention run inside decode steps.</p>",
        _stages(summary),
        "<h2>Time per token</h2>",
        "<p>Decode steps of the same request, a token each; the first one is of the prefill.</p>",
        _steps(summary["steps"]),
    ]
    if summary["gpu"]:
        parts += ["<h2>Kernels by stage</h2>", _kernels(summary["gpu"]["kernels"])]
    return document(f"Profile: {plan['question']}", parts)


def digits(value: float) -> str:
    """Three significant ones."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    return f"{digits(seconds * 1e3)} ms"


def _timeline(spans: list[dict[str, Any]]) -> str:
    """A lane per stage; spans of one lane that touch are drawn as one."""
    end = max((span["end"] for span in spans), default=0.0) or 1.0
    lanes: dict[str, list[list[float]]] = {}
    for span in spans:
        lane = lanes.setdefault(span["stage"], [])
        if lane and span["start"] - lane[-1][1] < end / 2000:
            lane[-1][1] = max(lane[-1][1], span["end"])
        else:
            lane.append([span["start"], span["end"]])
    rows = []
    for stage, lane in lanes.items():
        bars = "".join(
            f'<i style="left:{100 * a / end:.3f}%;width:{100 * (b - a) / end:.3f}%;'
            f'background:{COLOUR[stage]}"></i>'
            for a, b in lane
        )
        rows.append(f'<span>{escape(stage)}</span><div class="lane">{bars}</div>')
    marks = "".join(f"<b>{text}</b>" for text in ("0", milliseconds(end / 2), milliseconds(end)))
    axis = f'<span></span><div class="axis">{marks}</div>'
    return f'<div class="lanes">{"".join(rows)}{axis}</div>'


def _stages(summary: dict[str, Any]) -> str:
    rows = [
        [
            ("· " if row["within"] else "") + row["stage"],
            str(row["count"]),
            milliseconds(row["total"]),
            milliseconds(row["own"]),
            milliseconds(row["p50"]),
            milliseconds(row["p99"]),
            f"{row['share']:.1%}",
            "" if row["x_floor"] is None else f"{row['x_floor']:.1f}",
        ]
        for row in summary["stages"]
    ]
    share = summary["other"] / summary["request"]["total"]
    rows.append(["other", "", milliseconds(summary["other"]), "", "", "", f"{share:.1%}", ""])
    return table(["stage", "count", "total", "own", "p50", "p99", "share", "x floor"], rows)


def _steps(steps: list[float]) -> str:
    if not steps:
        return "<p>No decode step.</p>"
    most = max(steps)
    colour = COLOUR["decode step"]
    bars = "".join(
        f'<i style="height:{100 * step / most:.1f}%;background:{colour}" '
        f'title="step {i + 1}: {milliseconds(step)}"></i>'
        for i, step in enumerate(steps)
    )
    above = f'<div class="axis"><b>highest: {milliseconds(most)}</b></div>'
    last = f"<b>step {len(steps)}</b>" if len(steps) > 1 else ""
    return f'{above}<div class="bars">{bars}</div><div class="axis"><b>step 1</b>{last}</div>'


def _kernels(rows: Iterable[dict[str, Any]]) -> str:
    cells = [
        [row["stage"], row["kernel"][:80], str(row["count"]), milliseconds(row["total"])]
        for row in list(rows)[:30]
    ]
    return table(["stage", "kernel", "count", "total"], cells, text=2)
