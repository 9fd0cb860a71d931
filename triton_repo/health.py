"""What the launcher asks its own server, over HTTP on this machine."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from .access import HEADER


def is_ready(address: str) -> bool:
    return _status(f"http://{address}/v2/health/ready", 5) == 200


def is_live(address: str) -> bool:
    return _status(f"http://{address}/v2/health/live", 1) == 200


def is_loaded(address: str, model: str, key: str) -> bool:
    """Whether the server takes requests for a model; also True where it does not say."""
    request = urllib.request.Request(
        f"http://{address}/v2/repository/index", b"{}", headers={HEADER: key}
    )
    try:
        with _open(request, 5) as answer:
            states = {entry["name"]: entry.get("state") for entry in json.load(answer)}
    except (OSError, ValueError):
        return True
    return bool(states.get(model, "READY") == "READY")


def _status(url: str, timeout: float) -> int:
    try:
        with _open(urllib.request.Request(url), timeout) as answer:
            return int(answer.status)
    except OSError:
        return 0


def _open(request: urllib.request.Request, timeout: float) -> Any:
    # No proxy, whatever the environment says: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=timeout)
