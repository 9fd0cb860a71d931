"""The settings that the suite is measured at: what the paper varies, and what must lose."""

from __future__ import annotations

from ..core.config import DyCokeConfig

_TOKEN = DyCokeConfig(granularity="token")


def study() -> dict[str, DyCokeConfig]:
    """Name -> configuration; the first is full tokens, which the others are compared with."""
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
    return settings
