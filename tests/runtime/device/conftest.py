"""As in tests/kernels/device: on a GPU, or in Triton's interpreter, or not at all."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not INTERPRETED:
        for item in items:
            if "/tests/runtime/device/" in str(item.path):
                item.add_marker(pytest.mark.gpu)
