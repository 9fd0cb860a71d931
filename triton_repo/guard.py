"""Ends what a launcher leaves behind that was killed: a program of its own, run by its path.

    python -I -S guard.py MARK PATH...     (standard input: a pipe that the launcher holds)

A pipe closes with the process that holds it, however that ends. "done" on it: the launcher ended
the server itself. Otherwise every process of that server, which has MARK (the prefix of its shared
memory, drawn for this start) in its command line, gets SIGTERM, then SIGKILL, and the regions and
the PATHs are removed. Only the standard library, so that it starts in 20 ms.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

PATIENCE = 6.0  # seconds between SIGTERM and SIGKILL
OPTION = "shm-region-prefix-name="


def main(mark: str, paths: list[str]) -> None:
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # meant for the launcher
    if sys.stdin.buffer.read() == b"done":
        return
    everyone = processes(mark)
    for pid, is_server in everyone.items():
        if is_server:
            send(pid, signal.SIGTERM)
    wait(everyone, PATIENCE)
    for _ in range(5):  # what was being started meanwhile
        if not (left := processes(mark)):
            break
        for pid in left:
            send(pid, signal.SIGKILL)
        wait(left, 1.0)
    for region in Path("/dev/shm").glob(f"{mark}*"):
        region.unlink(missing_ok=True)
    for path in map(Path, paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def processes(mark: str) -> dict[int, bool]:
    """Processes of the server by id; whether they are servers, or mpirun, and not models."""
    servers = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):  # processes end while we look
                arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                is_server = any(f"{OPTION}{mark}" in argument for argument in arguments)
                if is_server or any(argument.startswith(mark) for argument in arguments[1:]):
                    servers[int(folder.name)] = is_server
    return servers


def send(pid: int, name: signal.Signals) -> None:
    with suppress(OSError):
        os.kill(pid, name)


def wait(pids: dict[int, bool], seconds: float) -> None:
    """Until all have ended, at most that long."""
    deadline = time.monotonic() + seconds
    poll, waiting = select.poll(), set()
    for pid in pids:
        with suppress(OSError):
            waiting.add(os.pidfd_open(pid))
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while waiting and (ended := poll.poll(max(deadline - time.monotonic(), 0) * 1000)):
        for descriptor, _ in ended:
            poll.unregister(descriptor)
            os.close(descriptor)
            waiting.discard(descriptor)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
