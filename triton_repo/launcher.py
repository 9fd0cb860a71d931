"""Starts a tritonserver on a model repository, watches it, and ends it.

    with serving(repository) as server:
        ...  # server.grpc, server.http and server.metrics are "127.0.0.1:PORT"
        server.wait()  # until the server or one of its models fails

Nothing is left behind: the server is ended with the block, on a signal, and by its guard if this
process is killed; what stays of its process group or its shared memory is removed.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from ..bundle.writing import writing
from ..core.errors import DyCokeError
from .access import access_options, new_key
from .health import is_live, is_loaded, is_ready
from .life import VARIABLE, Life, Phase
from .ports import choose_ports, listening
from .processes import end_group, guarded, spawn, wait_ended
from .regions import own_regions
from .repository import parse_version
from .server_folder import server_folder
from .server_log import LoadEvent, LogReader, explain
from .tritonserver import Ports, TritonServer, find_tritonserver
from .trtllm_launch import mpi_command, mpi_environment
from .watch import Watch

GRACE = 10.0  # seconds that requests in flight get when the server ends
HANG_SECONDS = 20.0  # without a sign of life a process counts as hanging
_ANSWER_SECONDS = 5.0  # for the error that each of them gets after that
# Seconds that the server gets to unload its models, which leave at once (models/alive.py). Triton
# up to 26.08 may wait in vain: it keeps the request of a stream that is cancelled between its last
# response and gRPC's word that this was written (server/src/grpc/infer_handler.h,
# IssueRequestCancellation: the state then waits for a callback that has been).
EXIT_TIMEOUT = 3
_PATIENCE = 5  # seconds after that, before SIGKILL
_POLL = 0.1  # seconds between looks at a server that loads
_QUIET = 0.25  # seconds between looks at a server that drains
# A peer that is gone without a word is noticed within 15 s; clients may ask as often as that.
_KEEPALIVE = (
    "--grpc-keepalive-time=10000",
    "--grpc-keepalive-timeout=5000",
    "--grpc-keepalive-permit-without-calls=1",
    "--grpc-http2-max-pings-without-data=0",
    "--grpc-http2-min-recv-ping-interval-without-data=5000",
)
_MANAGED = {
    "--model-repository",
    "--log-file",
    "--exit-timeout-secs",
    *(f"--{service}-port" for service in ("http", "grpc", "metrics")),
    *(f"--{service}-address" for service in ("http", "grpc", "metrics")),
}


@dataclass
class RunningServer:
    """A server that was ready. log: its output. key: opens restricted endpoints (access.py)."""

    ports: Ports
    log: Path
    pid: int
    repository: Path
    key: str = field(repr=False)
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)
    failure: str | None = None

    @property
    def http(self) -> str:
        return self._address("http")

    @property
    def grpc(self) -> str:
        return self._address("grpc")

    @property
    def metrics(self) -> str:
        return self._address("metrics")

    def wait(self, timeout: float | None = None) -> None:
        """Returns after `timeout` seconds; raises DyCokeError once the server or a model failed."""
        if self._ended.wait(timeout):
            raise DyCokeError(self.failure)

    def fail(self, message: str) -> None:
        self.failure = message
        self._ended.set()

    def _address(self, service: str) -> str:
        # A server that listens everywhere is reached here.
        host = self.ports.host_of(service)
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
        return f"{host}:{getattr(self.ports, service)}"


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
    opened: Collection[str] = (),
    grace: float = GRACE,
    exit_timeout: float = EXIT_TIMEOUT,
    hang_seconds: float = HANG_SECONDS,
    disposable: Sequence[Path] = (),
    loading: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[RunningServer]:
    """A server on `repository` while the block runs; ready when it begins.

    ports: 0 takes a free one. environment: additions to this process's. log_file: kept, and
    appended to; by default a temporary file, which is kept only if something failed. start_timeout:
    seconds. on_event: is told which model loads and which is ready. extra: further options of
    tritonserver. world_size: ranks of the LLM, each a server of its own under mpirun. opened: what
    clients may use beside the endpoints for asking (access.py). grace: seconds that requests in
    flight get at the end, before each is answered with UNAVAILABLE. exit_timeout: seconds that the
    server waits for requests of which nothing is known here (a backend in C++). hang_seconds: a
    process without a sign of life for so long is a failure; 0 does not look. disposable: removed
    even if this process is killed. loading: entered while the server loads.

    Must be entered in a thread that lives as long as the server (see `spawn`). Raises DyCokeError,
    one line, if the server cannot be started; what it says names the model and its error.
    """
    triton = tritonserver or find_tritonserver()
    for argument in extra:
        if argument.partition("=")[0] in _MANAGED:
            raise DyCokeError(
                f"{argument} cannot be passed on: dycoke sets it, by options of its own"
            )
    ports = choose_ports(listening(ports, opened, triton))
    version = parse_version(triton.version) if opened else ()
    key = new_key()
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder())
        log = log_file or folder.log
        with writing(log):
            log.open("ab").close()
        log_begin = log.stat().st_size
        backends = stack.enter_context(triton.backends())
        regions = stack.enter_context(own_regions())
        with writing(folder.life):
            life = Life.create(folder.life)
        stack.callback(life.close)
        options = [
            *backends,
            # The configuration is complete; completing it starts every model a second time.
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={math.ceil(exit_timeout)}",
            f"--backend-config=python,shm-region-prefix-name={regions.prefix}",
            *access_options(opened, key, version),
            *_KEEPALIVE,
            *([f"--log-verbose={log_verbose}"] if log_verbose else []),
            *extra,
        ]
        repository = repository.resolve()
        command = triton.command(repository, ports, options)
        variables = {
            **triton.environment(), **(environment or {}), VARIABLE: str(life.path)
        }  # fmt: skip
        if world_size > 1:
            command = mpi_command(command, world_size, variables["PATH"])
            variables |= mpi_environment(math.ceil(exit_timeout))
        temporary = [Path(option.partition("=")[2]) for option in backends]
        temporary += [*disposable, folder.path if log_file else life.path]
        stack.enter_context(guarded(regions.prefix, temporary))
        process = spawn(command, variables, log, [regions.lock])
        wake_out, wake_in = os.pipe()
        server = RunningServer(ports, log, process.pid, repository, key)
        watcher = None
        patience = exit_timeout + _PATIENCE
        try:
            with loading():
                _await_ready(server, process, start_timeout, on_event, log_begin)
            watch = Watch(
                process.pid,
                repository,
                life,
                hang_seconds=hang_seconds,
                is_live=lambda: is_live(server.http),
                is_loaded=(lambda model: is_loaded(server.http, model, key))
                if any(option.startswith("--model-control-mode") for option in extra)
                else None,
            )
            watcher = threading.Thread(
                target=_watch, args=(server, process, watch, wake_out), name="watch-triton"
            )
            watcher.start()
            yield server
            _drain(life, process, grace)
            folder.keep = server.failure is not None and log_file is None
        except KeyboardInterrupt:
            if watcher is not None and server.failure is None:
                patience = 0  # if interrupted again
                _drain(life, process, grace)
                patience = exit_timeout + _PATIENCE
            raise
        except BaseException:
            folder.keep = log_file is None
            raise
        finally:
            try:
                os.write(wake_in, b"x")  # what ends from now on ends on purpose
                if watcher is not None:
                    watcher.join()
            finally:
                end_group(process, patience)
                os.close(wake_in)
                os.close(wake_out)


def _drain(life: Life, process: Popen[bytes], grace: float) -> None:
    """Lets requests in flight finish, takes no new ones, and after `grace` seconds ends what is
    left with an error of its own. Returns at once where nothing is in flight."""
    for phase, seconds in ((Phase.DRAINING, grace), (Phase.ENDING, _ANSWER_SECONDS)):
        life.phase = phase
        deadline = time.monotonic() + seconds
        idle = 0
        while time.monotonic() < deadline:
            # Twice, because a request is nowhere while it goes from one model to the next.
            idle = 0 if any(sign.in_flight for sign in life.signs()) else idle + 1
            if idle == 2 or wait_ended(process.pid, _QUIET):
                return


def _await_ready(
    server: RunningServer,
    process: Popen[bytes],
    timeout: float,
    on_event: Callable[[LoadEvent], None],
    log_begin: int,
) -> None:
    """Returns when the server says that it is ready. Raises DyCokeError if it ends or is late."""
    deadline = time.monotonic() + timeout
    log = LogReader(server.log, log_begin)
    ready = False
    while not ready:
        ended = wait_ended(process.pid, _POLL)
        ready = not ended and is_ready(server.http)
        for event in log.events():
            on_event(event)
        if ended:
            reason = explain(log.text())
            raise DyCokeError(f"the server did not start: {reason} (log: {server.log})")
        if not ready and time.monotonic() > deadline:
            raise DyCokeError(
                f"the server was not ready after {timeout:.0f} s (log: {server.log}); allow more "
                "with --start-timeout"
            )


def _watch(server: RunningServer, process: Popen[bytes], watch: Watch, wake: int) -> None:
    """Ends the server as soon as something fails, so that no client waits for ever."""
    failure = watch.failure(wake)
    if failure is None:
        return
    # A request that hangs would use up the whole exit timeout.
    end_group(process, 0)
    ended = "" if failure.startswith("the server died") else "; the server was ended"
    server.fail(f"{failure}{ended} (log: {server.log})")
