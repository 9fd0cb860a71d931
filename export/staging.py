"""A directory that appears under its name only when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import DyCokeError


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yields a directory beside `target` that becomes `target` on success and goes on failure.

    Raises DyCokeError if `target` exists with something in it, or cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DyCokeError(f"{target}: exists; remove it or choose another directory")
    stage = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        stage.mkdir(parents=True)
        yield stage
        os.replace(stage, target)
    except OSError as error:
        raise DyCokeError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
