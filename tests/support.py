"""What tests of several folders share: the demo model's bundles and the command line."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.engines.cpu import build_cpu
from dycoke_trt.export.bundle import export_bundle

DYCOKE = Path(sys.executable).parent / "dycoke"
_folder = TemporaryDirectory(prefix="dycoke-tests-")


@cache
def demo_bundle(config: DyCokeConfig) -> Path:
    """The demo model exported in fp32 and built for the CPU, once per test session."""
    bundle = Path(_folder.name) / str(abs(hash(config)))
    export_bundle(MODEL_DIR, bundle, config, dtype="float32", max_frames=32)
    build_cpu(bundle, kv_tokens=16_384, tokens_per_block=8, max_batch=16)
    return bundle


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Waits for something that another process does; asks again at once, which takes its time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0)  # lets others run


def dycoke(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, as a user does."""
    command = [str(DYCOKE), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """A user error: status 2, one line on stderr that holds all `parts`, nothing on stdout."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr
