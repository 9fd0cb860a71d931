"""A line chart as SVG inside a page: text stays readable on a phone, colours follow the theme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import floor, log10
from typing import NamedTuple

WIDTH, HEIGHT = 360, 220  # units; a page shows them about as large as CSS pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 40
COLOURS = ("var(--first)", "var(--second)")


class Line(NamedTuple):
    """values: one per label of the x axis, None where there is none; upper: ends of whiskers."""

    name: str
    values: Sequence[float | None]
    upper: Sequence[float | None] | None = None


def line_chart(
    title: str, unit: str, x_title: str, labels: Sequence[str], lines: Sequence[Line]
) -> str:
    """Labels are evenly spaced; the y axis begins at 0."""
    every = [v for line in lines for v in (*line.values, *(line.upper or ())) if v is not None]
    step, count = _grid(max(every, default=0.0))
    top = step * count
    inner = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def x(index: int) -> float:
        return _LEFT + inner[0] * (index + 0.5) / len(labels)

    def y(value: float) -> float:
        return _TOP + inner[1] * (1 - value / top)

    parts = []
    for i in range(count + 1):
        at = y(i * step)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, at + 4, f"{i * step:g}", "end"))
    parts += [_text(x(i), HEIGHT - 24, label) for i, label in enumerate(labels)]
    parts.append(_text(_LEFT + inner[0] / 2, HEIGHT - 6, x_title))
    for number, line in enumerate(lines):
        shift = 6 * (number - (len(lines) - 1) / 2)  # whiskers side by side
        points = [(x(i) + shift, v, i) for i, v in enumerate(line.values) if v is not None]
        marks = []
        for at, value, i in points:
            upper = line.upper[i] if line.upper else None
            said = f"{line.name}, {labels[i]}: {value:.3g}"
            if upper is not None:
                marks.append(f'<path d="M{at:.1f} {y(value):.1f}V{y(upper):.1f}m-3 0h6"/>')
                said += f" to {upper:.3g}"
            marks.append(
                f'<circle cx="{at:.1f}" cy="{y(value):.1f}" r="3.5">'
                f"<title>{escape(said)} {escape(unit)}</title></circle>"
            )
        route = "L".join(f"{at:.1f} {y(value):.1f}" for at, value, _ in points)
        drawn = f'<path d="M{route}"/>' if len(points) > 1 else ""
        parts.append(
            f'<g class="series" style="--colour:{COLOURS[number]}">{drawn}{"".join(marks)}</g>'
        )
    return (
        f'<figure><figcaption>{escape(title)} <span class="unit">{escape(unit)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def legend(names: Sequence[str]) -> str:
    items = (
        f'<li><i style="background:{colour}"></i>{escape(name)}</li>'
        for name, colour in zip(names, COLOURS, strict=False)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid(most: float) -> tuple[float, int]:
    """Distance of grid lines, 1, 2 or 5 times a power of ten, and how many reach `most`."""
    if most <= 0:
        return 1.0, 1
    power = 10.0 ** floor(log10(most / 3))
    for factor in (1, 2, 5, 10):
        step = factor * power
        count = -int(-most // step)
        if count <= 5:
            return step, count
    raise AssertionError("unreachable")
