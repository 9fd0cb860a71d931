"""Where a test runs: a server that is there already, or servers of its own on a bundle."""

from __future__ import annotations

import json
import re
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....core.errors import DyCokeError
from ....triton_repo.bundle_server import serving_bundle
from ....triton_repo.processes import stubs_of

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
_PATIENCE = 60.0
SERVER = "tritonserver"  # the name of its own process beside those of models


@dataclass
class Running:
    """A server. processes: name -> id, empty where it runs elsewhere; metrics: empty if unknown."""

    grpc: str
    metrics: str = ""
    http: str = ""
    log: Path | None = None
    repository: Path | None = None
    processes: dict[str, int] = field(default_factory=dict)
    wait: Callable[[float], None] = lambda _: None  # raises once a process died

    def values(self) -> dict[str, float]:
        """Every metric: 'name' or 'name/label values in order' -> value, summed over GPUs."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=_PATIENCE) as answer:
            text = answer.read().decode()
        values: dict[str, float] = {}
        for line in text.splitlines():
            if match := re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", line):
                labels = re.findall(r'\w+="([^"]*)"', match[2] or "")
                name = "/".join([match[1], *labels])
                values[name] = values.get(name, 0.0) + float(match[3])
        return values

    def post(self, path: str, body: dict[str, Any]) -> int:
        """HTTP status of a request in JSON; 0 where nobody answers."""
        content = json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.http}/{path}", content)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def value(self, prefix: str) -> float:
        """The sum of all metrics whose name is, or begins with, `prefix` and a slash."""
        return sum(
            value
            for name, value in self.values().items()
            if name == prefix or name.startswith(f"{prefix}/")
        )

    def until_any(self, name: str, seconds: float) -> None:
        """Returns once a metric is above 0. Raises DyCokeError if that takes longer."""
        deadline = time.monotonic() + seconds
        while self.value(name) <= 0:
            if time.monotonic() > deadline:
                raise DyCokeError(f"{name} is 0 still, after {seconds:.0f} s")

    def until(self, name: str, wanted: float, seconds: float) -> float:
        """Seconds until a metric has that value; infinity if that takes longer than `seconds`."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            if self.value(name) == wanted:
                return time.monotonic() - begun
            time.sleep(0.01)
        return float("inf")

    def rss(self) -> dict[str, float]:
        """MB of resident memory of each process."""
        return {name: status(pid, "VmRSS") / 1024 for name, pid in self.processes.items()}

    def handles(self) -> dict[str, tuple[int, int]]:
        """(open files, threads) of each process."""
        return {
            name: (len(list(Path(f"/proc/{pid}/fd").iterdir())), status(pid, "Threads"))
            for name, pid in self.processes.items()
        }


def slopes(counts: Sequence[int], looks: Sequence[dict[str, float]]) -> dict[str, float]:
    """MB per 1,000 requests of each process, by least squares. counts: requests before each look;
    looks: of `rss`."""
    thousands = [count / 1000 for count in counts]
    return {
        name: round(
            statistics.linear_regression(thousands, [look[name] for look in looks]).slope, 3
        )
        for name in looks[0]
    }


def status(pid: int, field_name: str) -> int:
    """A number of /proc/PID/status, kB for memory. Raises DyCokeError if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        raise DyCokeError(f"process {pid} ended") from None
    return int(re.search(rf"^{field_name}:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]


class Stage:
    """Opened once; tests that need nothing special share one server on the bundle."""

    def __init__(self, *, bundle: Path | None = None, server: Running | None = None) -> None:
        assert (bundle is None) != (server is None)
        self.bundle = bundle
        self._server = server
        self._own: Any = None

    def shared(self) -> Running:
        if self._server is None:
            self._own = self.server()
            self._server = self._own.__enter__()
        return self._server

    def failure(self) -> str:
        """Why the shared server ended, which its launcher says within a few seconds; else ""."""
        try:
            if self._own is not None and self._server is not None:
                self._server.wait(2)
        except DyCokeError as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Ends the shared server, if it is one of ours."""
        if self._own is not None:
            own, self._own, self._server = self._own, None, None
            own.__exit__(None, None, None)

    @contextmanager
    def server(
        self,
        *,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> Iterator[Running]:
        """A server of its own. options: of `serving_bundle`."""
        assert self.bundle is not None
        variables = {**ENVIRONMENT, **(environment or {})}
        with serving_bundle(self.bundle, threads=1, environment=variables, **options) as running:
            yield Running(
                running.grpc,
                running.metrics,
                running.http,
                running.log,
                running.repository,
                processes(running.pid, running.repository),
                running.wait,
            )


def processes(server: int, repository: Path) -> dict[str, int]:
    """Names and ids: the server and its models; instances beside the first are numbered."""
    pids = {SERVER: server}
    for stub in stubs_of(server, repository):
        name, number = stub.model, 2
        while name in pids:
            name, number = f"{stub.model} {number}", number + 1
        pids[name] = stub.pid
    return pids
