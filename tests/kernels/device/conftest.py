"""Tests of this folder launch kernels: tests/interpreter.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from dycoke_trt.tests.interpreter import RUNNABLE, mark_gpu

if not RUNNABLE:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_gpu(items, Path(__file__).parent)
