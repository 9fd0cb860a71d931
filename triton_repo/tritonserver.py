"""Finds a tritonserver: a path that is given, a container's, one on PATH, or that of a wheel.

The wheel nvidia-pytriton carries a whole server with the Python backend for the CPU. Only its files
are used; its own package is never imported. The server's Python models run in the interpreter of
this process's version, with this environment's packages.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from ..bundle.writing import temporary_folder, writing
from ..core.errors import DyCokeError

CONTAINER_BINARY = Path("/opt/tritonserver/bin/tritonserver")
_PROBE_SECONDS = 30


@dataclass(frozen=True)
class Ports:
    """Where a server listens; host: an address of this machine. http_host: HTTP's, if another."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    host: str = "127.0.0.1"
    http_host: str = ""

    def host_of(self, service: str) -> str:
        return self.http_host or self.host if service == "http" else self.host


@dataclass(frozen=True)
class TritonServer:
    """A server that can be started. source: given, container, PATH or wheel."""

    binary: Path
    source: str

    @cached_property
    def version(self) -> str:
        """Such as 2.51.0.

        There is no --version. Containers have a file with it; otherwise a server without models is
        started (half a second), because it prints its version. Raises DyCokeError for neither.
        """
        file = self.binary.parent.parent / "TRITON_VERSION"
        return file.read_text().strip() if file.is_file() else self._printed_version()

    def command(self, repository: Path, ports: Ports, extra: Sequence[str] = ()) -> list[str]:
        """Command line of the server; `extra` comes last, so that it wins."""
        services = [
            f"--{service}-{key}={value}"
            for service in ("http", "grpc", "metrics")
            for key, value in (
                ("address", ports.host_of(service)),
                ("port", getattr(ports, service)),
            )
        ]
        return [str(self.binary), f"--model-repository={repository}", *services, *extra]

    def environment(self) -> dict[str, str]:
        """What the server's process needs: models run in the environment of `sys.executable`."""
        variables = dict(os.environ)
        # The embedded Python takes its environment from the first python3 on PATH.
        variables["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), variables.get("PATH", "")]
        )
        if self.source == "wheel":
            # libpython for the stub, and what the wheel bundles for the server.
            bundled = _wheel().parent.parent / "nvidia_pytriton.libs"
            before = [path for path in [variables.get("LD_LIBRARY_PATH")] if path]
            libraries = [sysconfig.get_config_var("LIBDIR"), str(bundled), *before]
            variables["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        return variables

    def backend_library(self, name: str) -> Path:
        """Where this server looks for the C++ backend `name`; the file may not be there."""
        folder = self.binary.resolve().parent.parent / "backends" / name
        return folder / f"libtriton_{name}.so"

    @contextmanager
    def backends(self) -> Iterator[list[str]]:
        """Arguments that name the backend directory, while it exists.

        The wheel keeps one stub (the process that runs a model) per Python version beside its
        backends; a folder of links brings together what belongs to this version.
        Raises DyCokeError if there is no stub for it, or it does not load.
        """
        if self.source != "wheel":
            yield []
            return
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stubs = _wheel() / "python_backend_stubs"
        stub = stubs / version / "triton_python_backend_stub"
        if stub.is_file():
            self._check_loads(stub)
        else:
            known = ", ".join(sorted((p.name for p in stubs.iterdir()), key=_numbers))
            raise DyCokeError(
                f"{stubs}: no stub for Python {version}, only for {known}; make the environment "
                "with one of these"
            )
        with temporary_folder("dycoke-backends-") as folder:
            python = folder / "python"
            with writing(folder):
                python.mkdir()
                for file in [*(_wheel() / "backends" / "python").glob("*.*"), stub]:
                    (python / file.name).symlink_to(file)
            yield [f"--backend-directory={folder}"]

    def _check_loads(self, stub: Path) -> None:
        """A server waits for ever for a stub whose libraries are missing."""
        done = subprocess.run(
            [str(stub)], env=self.environment(), capture_output=True, text=True, check=False
        )  # without arguments it ends at once
        if done.returncode == 127:  # of the dynamic loader
            library = f"libpython{sys.version_info.major}.{sys.version_info.minor}"
            raise DyCokeError(
                f"{stub} does not load: {done.stderr.strip().split(': ', 1)[-1]}"
                f"; on Debian: apt-get install {library}"
            )

    def _printed_version(self) -> str:
        with temporary_folder("dycoke-probe-") as empty:
            silent = [f"--allow-{service}=false" for service in ("http", "grpc", "metrics")]
            # The missing model ends the server, after it has printed its options.
            command = [
                str(self.binary),
                f"--model-repository={empty}",
                "--model-control-mode=explicit",
                "--load-model=none",
                *silent,
            ]
            try:
                done = subprocess.run(
                    command,
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=_PROBE_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                reason = getattr(error, "strerror", None) or f"no answer in {_PROBE_SECONDS} s"
                raise DyCokeError(f"{self.binary}: cannot be run ({reason})") from None
        match = re.search(r"server_version\s*\|\s*(\d+\.\d+\.\d+)", done.stdout)
        if match is None:
            last = (done.stdout.strip().splitlines() or ["it printed nothing"])[-1]
            raise DyCokeError(f"{self.binary}: printed no server_version ({last})")
        return match[1]


def find_tritonserver(path: Path | None = None) -> TritonServer:
    """The server to use: `path` if given, else a container's, PATH's, the wheel's.

    Raises DyCokeError, one line, that says how to get one.
    """
    if path is not None:
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise DyCokeError(f"--tritonserver {path}: no executable file")
        return TritonServer(path.absolute(), "given")
    if os.access(CONTAINER_BINARY, os.X_OK):
        return TritonServer(CONTAINER_BINARY, "container")
    if (on_path := shutil.which("tritonserver")) is not None:
        return TritonServer(Path(on_path), "PATH")
    if find_spec("pytriton") is not None:
        binary = _wheel() / "bin" / "tritonserver"
        if os.access(binary, os.X_OK):
            return TritonServer(binary, "wheel")
    raise DyCokeError(
        "no tritonserver found; run: pip install 'dycoke-trt[server]' (CPU), or use the container "
        "nvcr.io/nvidia/tritonserver, or name one with --tritonserver PATH"
    )


def _wheel() -> Path:
    spec = find_spec("pytriton")  # finds it without importing it
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tritonserver"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
