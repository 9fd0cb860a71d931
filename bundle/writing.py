"""Errors of writing, as one line that names the place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import DyCokeError


@contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Turns the block's OSError, such as a full file system, into a DyCokeError about `place`."""
    try:
        yield
    except OSError as error:
        raise DyCokeError(f"{place}: cannot be written ({error.strerror})") from None


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that is removed with the block. Raises DyCokeError if none can be made."""
    folder = make_temporary_folder(prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_temporary_folder(prefix: str) -> Path:
    """As `tempfile.mkdtemp`. Raises DyCokeError if none can be made."""
    try:
        return Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:  # there may be no usable folder at all
        raise DyCokeError(
            f"{tempfile.tempdir or 'the temporary folder'}: cannot be written ({error.strerror}); "
            "free it, or name another with TMPDIR"
        ) from None
