"""Processes around a tritonserver: starting it so that it cannot outlive us, and its models' stubs.

The Python backend runs every model instance in a process of its own, a child of the server, called
stub. If a stub dies, requests in flight may wait for ever: so the launcher watches them.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from . import guard

_STUB = "triton_python_backend_stub"
# Asks the kernel to end this process with its parent (PR_SET_PDEATHSIG = 1; it survives exec), and
# becomes the server. SIGTERM and not SIGKILL: the server then ends its stubs and frees its shared
# memory. A program of its own and not preexec_fn, which may deadlock where a parent has threads.
_GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Stub(NamedTuple):
    """The process of one instance of a model."""

    pid: int
    model: str


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Starts `command` in a process group of its own, output into `log`.

    It gets SIGTERM when the thread that called this ends, at the latest with this process.
    inherited: descriptors that it keeps.
    """
    guarded = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command]
    with log.open("ab") as output:
        return subprocess.Popen(
            guarded,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            pass_fds=inherited,
        )


@contextmanager
def guarded(mark: str, paths: Sequence[Path]) -> Iterator[None]:
    """While the block runs, a process stands by that ends the server with `mark` and removes its
    regions and `paths`, should this process be killed (guard.py)."""
    command = [sys.executable, "-I", "-S", guard.__file__, mark, *map(str, paths)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what ends this process's group must not end it
    ) as process:
        assert process.stdin is not None
        try:
            yield
        finally:
            with suppress(OSError):  # it was killed
                process.stdin.write(b"done")
                process.stdin.close()


def stubs_of(server: int, repository: Path) -> list[Stub]:
    """The stubs below the process with that id, by the model folder they name: children of a
    server, or of the servers that mpirun started."""
    stubs = []
    for pid in _descendants(server):
        with suppress(OSError):  # processes end while we look
            text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            arguments = text.split("\0")
            if _STUB in arguments[0]:
                stubs.append(Stub(pid, _model(arguments, repository)))
    return sorted(stubs)


def _descendants(ancestor: int) -> list[int]:
    """Processes below the one with that id, parents before their children."""
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                # "pid (name) state ppid ...", where the name may hold anything
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children[parent].append(int(folder.name))
    pids = [ancestor]
    for pid in pids:  # grows meanwhile
        pids += children[pid]
    return pids[1:]


def _model(arguments: Sequence[str], repository: Path) -> str:
    for argument in arguments[1:]:
        path = Path(argument)
        if path.is_relative_to(repository):
            return path.relative_to(repository).parts[0]
    return "?"


def wait_for_death(
    server: int, stubs: Sequence[Stub], wake: int, timeout: float
) -> Stub | int | None:
    """Waits until a process ends: the stub, the server's id, or None if `wake` (a file descriptor)
    became readable first. Raises TimeoutError after `timeout` seconds."""
    with ExitStack() as stack:
        watched: dict[int, Stub | int | None] = {wake: None}
        processes: list[Stub | int] = [*stubs, server]
        for process in processes:
            pid = process if isinstance(process, int) else process.pid
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                return process
            stack.callback(os.close, descriptor)
            watched[descriptor] = process
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        ended = [watched[descriptor] for descriptor, _ in poll.poll(timeout * 1000)]
    if not ended:
        raise TimeoutError
    # A server that ends takes its stubs with it: then they are not the cause.
    for first in (None, server):
        if first in ended:
            return first
    return ended[0]


def how_it_ended(pid: int) -> str:
    """'signal 9' or 'exit status 3' of a process whose parent has not collected it, else ''."""
    try:
        status = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[-1])
    except (OSError, ValueError):
        return ""
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def wait_ended(pid: int, timeout: float) -> bool:
    """Whether a child ended within `timeout` seconds; leaves it for its parent to collect."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(descriptor)


def end_group(process: subprocess.Popen[bytes], patience: float) -> bool:
    """Ends a process, its group and what it started: SIGTERM, `patience` seconds, SIGKILL. True if
    it ended itself.

    The process is collected last: until then its group's id cannot belong to another. Ranks of
    mpirun are in groups of their own, so they are held by descriptors, which stay theirs.
    """
    graceful = False
    with ExitStack() as stack:
        below = []
        for pid in _descendants(process.pid) if process.returncode is None else []:
            with suppress(OSError):  # it ended meanwhile
                below.append(os.pidfd_open(pid))
                stack.callback(os.close, below[-1])
        try:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
                graceful = wait_ended(process.pid, patience)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for descriptor in below:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    return graceful
