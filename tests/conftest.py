"""Shared by all tests: hypothesis without deadlines (no test depends on time), golden files."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("hypothesis"):  # GPU machines may lack it: tests/draws.py
    from hypothesis import settings

    settings.register_profile("default", deadline=None, max_examples=60)
    settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
    settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference data; its README says what each file is."""
    return Path(__file__).parent / "data" / "golden"
