"""TensorRT and TensorRT for RTX: two libraries of one interface, imported when they are needed.

Both keep the first logger that a process gives them and warn about every other one. So there is one
per library, and it remembers what was said: `None` instead of an engine has its reason only there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from ..core.errors import DyCokeError

_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


def version_of(*packages: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in packages:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


@dataclass(frozen=True)
class Library:
    """modules: names of the Python module, first choice first.
    distributions: what it has been called on the package index. remedy: how to get it."""

    title: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    remedy: str

    @property
    def version(self) -> str | None:
        """Of what is installed; found without importing it."""
        return version_of(*self.distributions)

    def load(self) -> LoadedLibrary:
        """The module and its logger, the same ones in each call.

        Raises DyCokeError where it is not installed, or its shared libraries cannot be loaded.
        """
        return _load(self)


TENSORRT = Library(
    "TensorRT",
    ("tensorrt",),
    ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "use the container of docs/tensorrt.md",
)
# Its own archive calls the module tensorrt_rtx; the wheels on the package index do not.
TENSORRT_RTX = Library(
    "TensorRT for RTX",
    ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    ("tensorrt-rtx", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu13-bindings"),
    "run: pip install 'dycoke-trt[rtx]'",
)


class Messages:
    """What a library said while it was listened to: (severity, text) in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def first_error(self) -> str:
        """The first error in one line; TensorRT's own later ones only repeat that it failed."""
        for wanted in ("ERROR", "INTERNAL_ERROR"):
            for severity, text in self.lines:
                if severity == wanted and text.strip():
                    return " ".join(text.split())
        return "no reason given"

    def last(self, beginning: str) -> str | None:
        """The last text that begins so."""
        texts = (text for _, text in reversed(self.lines) if text.startswith(beginning))
        return next(texts, None)


@dataclass(frozen=True)
class LoadedLibrary:
    """trt: the module. logger: the process's one."""

    library: Library
    trt: Any
    logger: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    def __str__(self) -> str:
        return f"{self.library.title} {self.version}"

    @contextmanager
    def listening(self) -> Iterator[Messages]:
        """What is said inside the block."""
        heard = Messages()
        self.logger.listeners.append(heard)
        try:
            yield heard
        finally:
            self.logger.listeners.remove(heard)


@cache
def _load(library: Library) -> LoadedLibrary:
    name = next((name for name in library.modules if find_spec(name) is not None), None)
    if name is None:
        raise DyCokeError(f"{library.title} is not installed; {library.remedy}")
    try:
        trt = import_module(name)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DyCokeError(f"{library.title} cannot be imported ({reason})") from None

    class RememberingLogger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # the binding refuses an object that skipped it
            self.listeners: list[Messages] = []

        def log(self, severity: Any, text: str) -> None:
            name = str(severity).rpartition(".")[2]
            for listener in self.listeners:
                listener.lines.append((name if name in _SEVERITIES else "ERROR", text))

    return LoadedLibrary(library, trt, RememberingLogger())
