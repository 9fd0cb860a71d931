"""What a tritonserver's log says: which model loads, and why a start failed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LOADING = re.compile(r'"?loading: (\S+?):\d+"?$')
_LOADED = re.compile(r"successfully loaded '([^']+)'")
_FAILED = re.compile(r"failed to load '([^']+)' version \d+: \w[\w ]*?: (.*)")
_BAD_CONFIG = re.compile(r"Poll failed for model directory '([^']+)': (.*)")
_PORT = re.compile(r"Socket '(\S+):(\d+)' already in use")
# An exception of C++ that nobody caught ends the server, whatever the models were doing.
_ABORTED = re.compile(r"^terminate called after throwing an instance of '([^']+)'", re.MULTILINE)
# Every server without a GPU logs it as an error, and goes on.
_NO_GPU = "CudaDriverHelper has not been initialized"
# The Python backend names the place after the error, with line breaks escaped in newer releases.
_PLACE = re.compile(r"(?:\\n|\n)+At:.*", re.DOTALL)


class LoadEvent(NamedTuple):
    """state: loading, ready or failed."""

    model: str
    state: str


class LogReader:
    """Reads a log that is still being written, whole lines at a time. begin: bytes before it."""

    def __init__(self, path: Path, begin: int = 0) -> None:
        self._path, self._begin = path, begin
        self._offset = begin

    def events(self) -> Iterator[LoadEvent]:
        """What was logged about models since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                if (event := load_event(line.decode(errors="replace").strip())) is not None:
                    yield event

    def text(self) -> str:
        """All of it, from `begin`."""
        with self._path.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")


def load_event(line: str) -> LoadEvent | None:
    for pattern, state in ((_LOADING, "loading"), (_LOADED, "ready"), (_FAILED, "failed")):
        if match := pattern.search(line):
            return LoadEvent(match[1], state)
    return None


def explain(log: str) -> str:
    """Why a server that wrote this log did not start, in one line."""
    if match := _PORT.search(log):
        return f"port {match[2]} on {match[1]} is in use; choose another port (0 takes a free one)"
    if match := _FAILED.search(log):
        # An ensemble only fails because a step did; the first failure is the cause.
        return f"model {match[1]}: {_reason(match[2])}"
    if match := _BAD_CONFIG.search(log):
        return f"model {match[1]}: {_reason(match[2])}"
    if match := _ABORTED.search(log):
        return f"it ended by an exception of its own, {match[1]}; start it again"
    lines = [line.strip() for line in log.splitlines() if line.strip() and _NO_GPU not in line]
    errors = [line for line in lines if re.match(r"E\d{4} |error: |\S*tritonserver: ", line)]
    return (errors or lines or ["the log is empty"])[-1]


def _reason(text: str) -> str:
    text = _PLACE.sub("", text).rstrip('"')
    # Of several lines the last says what happened, as in a Python traceback.
    lines = [line for line in re.split(r"\\n|\n", text) if line.strip()]
    return lines[-1].strip() if lines else text
