"""These tests launch kernels: on a GPU if there is one, else in Triton's interpreter.

The interpreter is chosen when triton is imported, so tests/kernels/test_interpreter.py runs this
folder in processes of its own with TRITON_INTERPRET=1; without that and a GPU it is empty.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not INTERPRETED:
        for item in items:
            if "/tests/kernels/device/" in str(item.path):
                item.add_marker(pytest.mark.gpu)
