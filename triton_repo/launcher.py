"""Starts a tritonserver on a model repository, watches it, and ends it.

    with serving(repository) as server:
        ...  # server.grpc, server.http and server.metrics are "127.0.0.1:PORT"
        server.wait()  # until the server or one of its models dies

Nothing is left behind: the server is ended with the block, on a signal, and by the kernel if this
process is killed; what stays of its process group or its shared memory is removed.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from ..core.errors import DyCokeError
from .processes import Stub, end_group, how_it_ended, spawn, stubs_of, wait_ended, wait_for_death
from .server_log import LoadEvent, LogReader, explain
from .tritonserver import Ports, TritonServer, find_tritonserver
from .trtllm_launch import mpi_command, mpi_environment

EXIT_TIMEOUT = 10  # seconds that requests in flight get when the server ends
_GRACE = 5  # seconds after that, before SIGKILL
_POLL = 0.1  # seconds between looks at a server that loads
# Below the ports that systems hand out for connections: none is taken between choice and use.
_FREE_PORTS = range(20_000, 32_768)
_MANAGED = {
    "--model-repository",
    "--log-file",
    "--exit-timeout-secs",
    *(f"--{service}-port" for service in ("http", "grpc", "metrics")),
    *(f"--{service}-address" for service in ("http", "grpc", "metrics")),
}


@dataclass
class RunningServer:
    """A server that was ready. log: its output."""

    ports: Ports
    log: Path
    pid: int
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)
    failure: str | None = None

    @property
    def http(self) -> str:
        return self._address(self.ports.http)

    @property
    def grpc(self) -> str:
        return self._address(self.ports.grpc)

    @property
    def metrics(self) -> str:
        return self._address(self.ports.metrics)

    def wait(self, timeout: float | None = None) -> None:
        """Returns after `timeout` seconds; raises DyCokeError once the server or a model died."""
        if self._ended.wait(timeout):
            raise DyCokeError(self.failure)

    def fail(self, message: str) -> None:
        self.failure = message
        self._ended.set()

    def _address(self, port: int) -> str:
        # A server that listens everywhere is reached here.
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.ports.host, self.ports.host)
        return f"{host}:{port}"


@contextmanager
def serving(
    repository: Path,
    *,
    tritonserver: TritonServer | None = None,
    ports: Ports = Ports(0, 0, 0),  # noqa: B008 (frozen)
    environment: Mapping[str, str] | None = None,
    log_file: Path | None = None,
    log_verbose: int = 0,
    start_timeout: float = 600,
    on_event: Callable[[LoadEvent], None] = lambda _: None,
    extra: Sequence[str] = (),
    world_size: int = 1,
) -> Iterator[RunningServer]:
    """A server on `repository` while the block runs; ready when it begins.

    ports: 0 takes a free one. environment: additions to this process's. log_file: kept; by default
    a temporary file, which is kept only if something failed. start_timeout: seconds. on_event: is
    told which model loads and which is ready. extra: further options of tritonserver. world_size:
    ranks of the LLM, each a server of its own under mpirun.

    Must be entered in a thread that lives as long as the server (see `spawn`). Raises DyCokeError,
    one line, if the server cannot be started; what it says names the model and its error.
    """
    found = tritonserver or find_tritonserver()
    for argument in extra:
        if argument.partition("=")[0] in _MANAGED:
            raise DyCokeError(
                f"{argument} cannot be passed on: dycoke sets it, by options of its own"
            )
    ports = choose_ports(ports)
    folder = None if log_file else Path(tempfile.mkdtemp(prefix="dycoke-serve-"))
    log = log_file or Path(str(folder)) / "tritonserver.log"
    _create(log)
    shared_memory = f"dycoke_{uuid.uuid4().hex}_"
    failed = True
    with found.backends() as backends:
        options = [
            *backends,
            # The configuration is complete; completing it starts every model a second time.
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={EXIT_TIMEOUT}",
            f"--backend-config=python,shm-region-prefix-name={shared_memory}",
            *([f"--log-verbose={log_verbose}"] if log_verbose else []),
            *extra,
        ]
        repository = repository.resolve()
        command = found.command(repository, ports, options)
        variables = {**found.environment(), **(environment or {})}
        if world_size > 1:
            command = mpi_command(command, world_size, variables["PATH"])
            variables |= mpi_environment(EXIT_TIMEOUT)
        process = spawn(command, variables, log)
        wake_out, wake_in = os.pipe()
        server = RunningServer(ports, log, process.pid)
        watcher = None
        try:
            _await_ready(server, process, start_timeout, on_event)
            stubs = stubs_of(process.pid, repository)
            watcher = threading.Thread(
                target=_watch, args=(server, process, stubs, wake_out), name="watch-triton"
            )
            watcher.start()
            yield server
            failed = server.failure is not None
        except KeyboardInterrupt:
            failed = False
            raise
        finally:
            try:
                os.write(wake_in, b"x")  # what ends from now on ends on purpose
                if watcher is not None:
                    watcher.join()
            finally:
                end_group(process, EXIT_TIMEOUT + _GRACE)
                os.close(wake_in)
                os.close(wake_out)
                for region in Path("/dev/shm").glob(f"{shared_memory}*"):
                    region.unlink(missing_ok=True)
                if folder is not None and not failed:
                    shutil.rmtree(folder, ignore_errors=True)


def choose_ports(ports: Ports) -> Ports:
    """`ports` with a free one for each 0. Raises DyCokeError for one that is in use: the server
    itself would only say so after it has loaded every model."""
    chosen: dict[str, int] = {}
    for name in ("http", "grpc", "metrics"):
        port = getattr(ports, name)
        if not 0 <= port < 65536:
            raise DyCokeError(f"--{name}-port {port} is not allowed; allowed: 0 to 65535")
        if port in chosen.values():
            raise DyCokeError(f"--{name}-port {port} is given twice; choose another")
        if port == 0:
            candidates = random.sample(_FREE_PORTS, 100)
            free = (p for p in candidates if p not in chosen.values() and _is_free(ports.host, p))
            port = next(free, 0)
            if port == 0:
                raise DyCokeError(f"--{name}-port 0: no free port on {ports.host}; name one")
        elif not _is_free(ports.host, port):
            raise DyCokeError(
                f"port {port} on {ports.host} is in use; choose another with --{name}-port "
                "(0 takes a free one)"
            )
        chosen[name] = port
    return Ports(**chosen, host=ports.host)


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connection is just closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except socket.gaierror:
            raise DyCokeError(f"--host {host}: not an address of this machine") from None
        except OSError as error:
            if error.errno in (99, 22):  # EADDRNOTAVAIL, EINVAL
                raise DyCokeError(f"--host {host}: not an address of this machine") from None
            return False
    return True


def _create(log: Path) -> None:
    try:
        log.write_bytes(b"")
    except OSError as error:
        raise DyCokeError(f"{log}: cannot be written ({error.strerror})") from None


def _await_ready(
    server: RunningServer,
    process: Popen[bytes],
    timeout: float,
    on_event: Callable[[LoadEvent], None],
) -> None:
    """Returns when the server says that it is ready. Raises DyCokeError if it ends or is late."""
    deadline = time.monotonic() + timeout
    log = LogReader(server.log)
    ready = False
    while not ready:
        ended = wait_ended(process.pid, _POLL)
        ready = not ended and _is_ready(server.http)
        for event in log.events():
            on_event(event)
        if ended:
            reason = explain(server.log.read_text(errors="replace"))
            raise DyCokeError(f"the server did not start: {reason} (log: {server.log})")
        if not ready and time.monotonic() > deadline:
            raise DyCokeError(
                f"the server was not ready after {timeout:.0f} s (log: {server.log}); allow more "
                "with --start-timeout"
            )


def _is_ready(address: str) -> bool:
    # No proxy, whatever the environment says: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _watch(server: RunningServer, process: Popen[bytes], stubs: Sequence[Stub], wake: int) -> None:
    """Ends the server as soon as a model's process dies, so that no client waits for ever."""
    first = wait_for_death(process.pid, stubs, wake)
    if first is None:
        return
    if isinstance(first, Stub):
        how = how_it_ended(first.pid)
        message = f"model {first.model} died{f' ({how})' if how else ''}; the server was ended"
    else:
        message = f"the server died ({how_it_ended(process.pid)})"
    # A request that hangs would use up the whole exit timeout.
    end_group(process, 0)
    server.fail(f"{message} (log: {server.log})")
