"""The settings that the suite is measured at: what the paper varies, and what must lose."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..core.config import DyCokeConfig
from ..core.counts import tokens_kept

_TOKEN = DyCokeConfig(granularity="token")
_TUNED = {"gate": "always", "memory": 0.5}


class Setting(NamedTuple):
    """tokens_per_block: selects blocks of this size; None selects tokens."""

    config: DyCokeConfig
    tokens_per_block: int | None = None


_BASES = {
    "full tokens": Setting(DyCokeConfig.off()),
    "TTM": Setting(_TOKEN.with_changes(p=0.0)),
}


class Span(NamedTuple):
    """Where the suite's visual tokens lie after TTM at K = 0.7: `visual` ones behind `before`."""

    before: int
    visual: int


def merging(_: Span) -> dict[str, Setting]:
    """The paper's axes at token granularity: K, P, TTM, gate."""
    settings = {"full tokens": DyCokeConfig.off()}
    for rate in (0.5, 0.7):
        settings[f"TTM K={rate}"] = _TOKEN.with_changes(k=rate, p=0.0)
        for ttm in ("paper", "reference"):
            for gate in ("reuse", "full", "once"):
                name = f"K=P={rate} ttm {ttm}, gate {gate}"
                settings[name] = _TOKEN.with_changes(k=rate, p=rate, ttm=ttm, gate=gate)
        name = f"K=P={rate} ttm random, gate reuse"
        settings[name] = _TOKEN.with_changes(k=rate, p=rate, ttm="random")
    for ttm in ("paper", "random"):
        settings[f"TTM K=0.9 {ttm}"] = _TOKEN.with_changes(k=0.9, p=0.0, ttm=ttm)
    settings["K=0.9 P=0.7 ttm paper, gate reuse"] = _TOKEN.with_changes(k=0.9)
    return {name: Setting(config) for name, config in settings.items()}


def selection(span: Span) -> dict[str, Setting]:
    """Which selection keeps answers: granularity, P, memory, gate, order, reduction, at K = 0.7.

    Settings of one P attend to about as many visual tokens per pruned step.
    """
    rows = []
    for p in (0.7, 0.5, 0.9):
        rows += [_row(span, None, p), _row(span, None, p, **_TUNED)]
        for block in (16, 32, 64):
            rows += [
                _row(span, block, p),
                _row(span, block, p, **_TUNED),
                _row(span, block, p, **_TUNED, order="importance"),
            ]
    for gate in ("reuse", "always"):
        for memory in (0.0, 0.3, 0.5, 0.65, 0.8, 0.9):
            rows.append(_row(span, None, 0.7, gate=gate, memory=memory))
            rows.append(_row(span, 32, 0.7, gate=gate, memory=memory, order="importance"))
    rows.append(_row(span, 32, 0.7, block_reduce="max"))
    # Settings that coincide, such as rates of large blocks, have the name that came first.
    names: dict[Setting, str] = {}
    for name, setting in rows:
        names.setdefault(setting, name)
    return {**_BASES, **{name: setting for setting, name in names.items()}}


def candidates(span: Span) -> dict[str, Setting]:
    """What `tuned()` was chosen from, and what it is measured against."""
    rows = [_row(span, None, 0.7), _row(span, 32, 0.7), _row(span, None, 0.9)]
    for block, more in ((None, {}), (32, {"order": "importance"})):
        for memory in (0.5, 0.65, 0.8):
            rows.append(_row(span, block, 0.7, gate="always", memory=memory, **more))
    for gate, block, p in (("reuse", 32, 0.7), ("always", 64, 0.7), ("always", 16, 0.9)):
        rows.append(_row(span, block, p, gate=gate, memory=0.65, order="importance"))
    return {**_BASES, **dict(rows)}


def _row(span: Span, block: int | None, p: float, **changes: object) -> tuple[str, Setting]:
    """A setting and its name: `P=0.7 tokens: paper`, `P=0.7 blocks of 32: always, 0.5`."""
    config = DyCokeConfig().with_changes(
        p=p if block is None else block_rate(span, block, p),
        granularity="token" if block is None else "block",
        **changes,
    )
    what = "tokens" if block is None else f"blocks of {block}"
    said = ", ".join(map(str, changes.values())) or "paper"
    return f"P={p} {what}: {said}", Setting(config, block)


class Study(NamedTuple):
    """settings: by name, of the suite's span; bases: those that every other is compared with."""

    settings: Callable[[Span], dict[str, Setting]]
    bases: tuple[str, ...]


_PAPER = "P=0.7 tokens: paper"
STUDIES = {
    "merging": Study(merging, ("full tokens",)),
    "selection": Study(selection, ("full tokens", "TTM", _PAPER)),
    "candidates": Study(candidates, ("full tokens", "TTM", _PAPER)),
}


def block_rate(span: Span, tokens_per_block: int, p: float) -> float:
    """The P at which blocks of this size attend to about as many visual tokens as tokens do at p.

    Blocks at the edges of the span are always attended to, so the interior ones have to give more,
    all but one at the most; the answer is a whole number of blocks, as a rate 0 <= rate < 1.
    """
    size = tokens_per_block
    interior = (span.before + span.visual) // size - -(-span.before // size)
    if interior < 1:
        return 0.0
    drop = round((span.visual - tokens_kept(span.visual, p)) / size)
    return min(drop, interior - 1) / interior
