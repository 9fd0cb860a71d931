"""Tests that launch kernels: on a GPU if there is one, else in Triton's interpreter.

The interpreter is chosen when triton is imported, so tests/kernels/test_interpreter.py runs such
folders in processes of their own with TRITON_INTERPRET=1; without that and a GPU they are empty.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNNABLE = INTERPRETED or torch.cuda.is_available()


def mark_gpu(items: list[pytest.Item], folder: Path) -> None:
    if not INTERPRETED:
        for item in items:
            if folder in item.path.parents:
                item.add_marker(pytest.mark.gpu)
