"""Deaths that fall between two waits are seen too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from dycoke_trt.triton_repo.life import Life
from dycoke_trt.triton_repo.watch import Watch

# A process with a child that looks like a model's, and that nobody collects.
SERVER = """
import subprocess, sys
command = ["triton_python_backend_stub", "-c", "import signal; signal.pause()", sys.argv[1]]
print(subprocess.Popen(command, executable=sys.executable).pid, flush=True)
sys.stdin.read()
"""


def failure(tmp_path: Path, *, loaded: bool) -> str | None:
    """What a watch says of a model that dies after one wait and before the next."""
    models = tmp_path / "models"
    command = [sys.executable, "-c", SERVER, str(models / "dycoke" / "1" / "model.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdout is not None
        stub = int(server.stdout.readline())
        wake_out, wake_in = os.pipe()
        looks = 0

        def is_live() -> bool:
            """Asked where the wait has ended and processes are not listed yet."""
            nonlocal looks
            looks += 1
            if looks == 1:
                os.kill(stub, signal.SIGKILL)
            else:
                os.write(wake_in, b"x")
            return True

        watch = Watch(
            server.pid,
            models,
            Life.create(tmp_path / "life"),
            hang_seconds=60,
            is_live=is_live,
            is_loaded=lambda _: loaded,
        )
        said = watch.failure(wake_out)
        os.close(wake_in)
        os.close(wake_out)
        assert server.stdin is not None
        server.stdin.close()
    return said


def test_a_death_between_two_waits_is_one(tmp_path: Path) -> None:
    assert failure(tmp_path, loaded=True) == "model dycoke died (signal 9)"


def test_an_end_between_two_waits_may_be_an_unloading(tmp_path: Path) -> None:
    assert failure(tmp_path, loaded=False) is None
