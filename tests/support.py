"""What tests of several folders share: the demo model's bundles and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, TypeVar

from dycoke_trt.cli.main import run
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.engines.cpu import build_cpu
from dycoke_trt.export.bundle import export_bundle

DYCOKE = Path(sys.executable).parent / "dycoke"
Said = TypeVar("Said")
_LOOK = 0.005  # seconds between looks
_folder = TemporaryDirectory(prefix="dycoke-tests-")


@cache
def demo_bundle(config: DyCokeConfig) -> Path:
    """The demo model exported in fp32 and built for the CPU, once per test session."""
    bundle = Path(_folder.name) / str(abs(hash(config)))
    export_bundle(MODEL_DIR, bundle, config, dtype="float32", max_frames=32)
    build_cpu(bundle, kv_tokens=16_384, tokens_per_block=8, max_batch=16)
    return bundle


def until(condition: Callable[[], Said], seconds: float = 120) -> Said:
    """What `condition` says, once it is true of something that another process does."""
    deadline = time.monotonic() + seconds
    while not (said := condition()):
        assert time.monotonic() < deadline
        time.sleep(_LOOK)  # leaves the core to that process
    return said


def dycoke(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """What the command does, in this process: a new one would import torch for seconds first.

    tests/cli/test_main.py holds it against `spawned`. Output is that of the file descriptors, so
    that native code and children are heard too.
    """
    command = [DYCOKE.name, *map(str, args)]
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with _written("stdout", 1, out), _written("stderr", 2, err):
            status = _status(command)
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(command, status, out.read(), err.read())


def _status(command: list[str]) -> int:
    before, sys.argv = sys.argv, command
    try:
        run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.argv = before
    return 0


@contextmanager
def _written(stream: str, descriptor: int, file: IO[str]) -> Iterator[None]:
    """Meanwhile `file` holds what is written to sys.`stream` and to its descriptor."""
    before, kept = getattr(sys, stream), os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    setattr(sys, stream, file)
    try:
        yield
    finally:
        file.flush()
        setattr(sys, stream, before)
        os.dup2(kept, descriptor)
        os.close(kept)


def spawned(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user runs it."""
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
