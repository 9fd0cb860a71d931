"""Shared by all tests: hypothesis without deadlines (no test depends on time), the skips that CI
allows, golden files."""

import gc
import os
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.tests.skips import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401

if find_spec("hypothesis"):  # GPU machines may lack it: tests/draws.py
    from hypothesis import settings

    settings.register_profile("default", deadline=None, max_examples=60)
    settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
    settings.load_profile("ci" if os.environ.get("CI") else "default")


# A shell ignores SIGINT for what it runs in the background, and children would inherit that: tests
# that interrupt a command would wait for it for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Vision graphs are traced once for all workers and commands, and again when code changes."""
    cache = getattr(config, "cache", None)  # absent with -p no:cacheprovider
    folder = cache.mkdir("graphs") if cache else tempfile.gettempdir() + "/dycoke-graphs"
    os.environ.setdefault("DYCOKE_GRAPH_CACHE", str(folder))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadfile":
        return None
    from dycoke_trt.tests.units import UnitScheduling

    return UnitScheduling(config, log)


def pytest_collection_finish() -> None:
    """Modules and tests stay until the end: a collection of garbage, of which reading a video asks
    for one, would look through half a million objects of theirs each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the reference data; its README says what each file is."""
    return Path(__file__).parent / "data" / "golden"
