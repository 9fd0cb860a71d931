"""The settings that the suite is measured at: what the paper varies, and what must lose."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..core.config import DyCokeConfig
from ..core.counts import tokens_kept

_TOKEN = DyCokeConfig(granularity="token")


class Setting(NamedTuple):
    """tokens_per_block: selects blocks of this size; None selects tokens."""

    config: DyCokeConfig
    tokens_per_block: int | None = None


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
    settings = {
        "full tokens": Setting(DyCokeConfig.off()),
        "TTM": Setting(_TOKEN.with_changes(p=0)),
    }

    def add(block: int | None, p: float, **changes: object) -> None:
        rate = p if block is None else block_rate(span, block, p)
        config = DyCokeConfig().with_changes(
            p=rate, granularity="token" if block is None else "block", **changes
        )
        what = "tokens" if block is None else f"blocks of {block}"
        said = ", ".join(str(value) for value in changes.values())
        settings[f"P={p} {what}: {said or 'paper'}"] = Setting(config, block)

    for p in (0.7, 0.5, 0.9):
        add(None, p)
        add(None, p, gate="always", memory=0.5)
        for block in (16, 32, 64):
            add(block, p)
            add(block, p, gate="always", memory=0.5)
            add(block, p, gate="always", memory=0.5, order="importance")
    for gate in ("reuse", "always"):
        for memory in (0.0, 0.3, 0.5, 0.65, 0.8, 0.9):
            if (gate, memory) not in (("reuse", 0.0), ("always", 0.5)):
                add(None, 0.7, gate=gate, memory=memory)
            if (gate, memory) != ("always", 0.5):
                add(32, 0.7, gate=gate, memory=memory, order="importance")
    add(32, 0.7, block_reduce="max")
    # Rates of large blocks are few: where two P give the same one, the first stands for both.
    names: dict[Setting, str] = {}
    for name, setting in settings.items():
        names.setdefault(setting, name)
    return {name: setting for setting, name in names.items()}


def candidates(span: Span) -> dict[str, Setting]:
    """What `tuned()` was chosen from, and what it is measured against."""
    every = selection(span)
    names = [
        "full tokens", "TTM", _PAPER, "P=0.7 blocks of 32: paper", "P=0.9 tokens: paper",
        *(f"P=0.7 tokens: always, {memory}" for memory in (0.5, 0.65, 0.8)),
        *(f"P=0.7 blocks of 32: always, {memory}, importance" for memory in (0.5, 0.65, 0.8)),
        "P=0.7 blocks of 32: reuse, 0.5, importance",
        "P=0.7 blocks of 64: always, 0.5, importance",
        "P=0.9 blocks of 16: always, 0.5, importance",
    ]  # fmt: skip
    return {name: every[name] for name in names}


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
