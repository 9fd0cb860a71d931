"""Tests that launch kernels: on a GPU if there is one, else in Triton's interpreter.

The interpreter is chosen when triton is imported, so tests/kernels/test_interpreter.py runs such
folders in processes of their own with TRITON_INTERPRET=1; without that and a GPU they are empty.
"""

from __future__ import annotations

import inspect
import os
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNNABLE = INTERPRETED or torch.cuda.is_available()


def mark_gpu(items: list[pytest.Item], folder: Path) -> None:
    if not INTERPRETED:
        for item in items:
            if folder in item.path.parents:
                item.add_marker(pytest.mark.gpu)


def look_up_builtins_once() -> None:
    """Triton's interpreter reads and sorts all members of its language at every call of a device
    function, to replace the few that are builtins: 40 % of these tests' time."""
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @cache
    def names(package: ModuleType | type) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def patch_builtin(package: ModuleType | type, *rest: Any) -> None:
        for name in names(package):
            if is_builtin(member := getattr(package, name)):  # not replaced yet
                interpreter._patch_attr(package, name, member, *rest)

    assert callable(interpreter._patch_builtin)
    interpreter._patch_builtin = patch_builtin


if INTERPRETED:
    look_up_builtins_once()
