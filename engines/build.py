"""Placeholder."""

from __future__ import annotations

from pathlib import Path

from .build_plan import BuildPlan


def build_engines(bundle: Path, plan: BuildPlan) -> Path:
    raise NotImplementedError
