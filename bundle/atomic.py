"""Writing that leaves either everything or nothing. Needs nothing but the standard library."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import DyCokeError
from .writing import writing


@contextmanager
def atomic_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary directory beside `target` that becomes it, or vanishes with the exception.

    An empty directory may stand in its place, and with `replace` one of any content. Raises
    DyCokeError for anything else that does, and if nothing can be written there.
    """
    full = target.exists() and not is_empty_directory(target)
    if full and not replace:
        raise DyCokeError(f"{target} exists already; choose another directory")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)  # mkdtemp makes it private
        if full:
            old = work.with_name(work.name + ".old")
            target.rename(old)
            work.rename(target)
            shutil.rmtree(old)
        else:
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def atomic_write(path: Path, text: str) -> None:
    """Writes a text file that readers see either as it was or complete."""
    atomic_bytes(path, text.encode())


def atomic_bytes(path: Path, content: bytes) -> None:
    """The same for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
