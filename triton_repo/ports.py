"""Which ports a server takes: checked before it loads anything, chosen where none is named."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from dataclasses import replace

from ..core.errors import DyCokeError
from .access import HTTP
from .repository import parse_version
from .tritonserver import Ports, TritonServer
from .weaknesses import http_is_weak

# Below the ports that systems hand out for connections: none is taken between choice and use.
_FREE_PORTS = range(20_000, 32_768)
_LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def listening(ports: Ports, opened: Collection[str], server: TritonServer) -> Ports:
    """`ports`, with HTTP on loopback only where peers could crash that version through it.

    opened: what the operator opens in spite of that (access.py).
    """
    # Asking a server for its version takes half a second: only where it matters.
    if is_loopback(ports.host) or HTTP in opened or not http_is_weak(parse_version(server.version)):
        return ports
    return replace(ports, http_host=_LOOPBACK)


def choose_ports(ports: Ports) -> Ports:
    """`ports` with a free one for each 0. Raises DyCokeError for one that is in use: the server
    itself would only say so after it has loaded every model."""
    chosen: dict[str, int] = {}
    for name in ("http", "grpc", "metrics"):
        port, host = getattr(ports, name), ports.host_of(name)
        if not 0 <= port < 65536:
            raise DyCokeError(f"--{name}-port {port} is not allowed; allowed: 0 to 65535")
        if port in chosen.values():
            raise DyCokeError(f"--{name}-port {port} is given twice; choose another")
        if port == 0:
            candidates = random.sample(_FREE_PORTS, 100)
            free = (p for p in candidates if p not in chosen.values() and _is_free(host, p))
            port = next(free, 0)
            if port == 0:
                raise DyCokeError(f"--{name}-port 0: no free port on {host}; name one")
        elif not _is_free(host, port):
            raise DyCokeError(
                f"port {port} on {host} is in use; choose another with --{name}-port "
                "(0 takes a free one)"
            )
        chosen[name] = port
    return Ports(**chosen, host=ports.host, http_host=ports.http_host)


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
