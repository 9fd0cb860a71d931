"""The temporary folder of one start of a server: gone with it, or kept for its log if it failed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..bundle.writing import make_temporary_folder

MOST_KEPT = 10  # the newest; a server that is started again and again would fill the disk
_PREFIX = "dycoke-serve-"
_FAILED = "failed"


@dataclass
class ServerFolder:
    """keep: it stays, without what the models' processes share."""

    path: Path
    keep: bool = False

    @property
    def log(self) -> Path:
        return self.path / "tritonserver.log"

    @property
    def life(self) -> Path:
        return self.path / "life"


@contextmanager
def server_folder() -> Iterator[ServerFolder]:
    """Raises DyCokeError if none can be made."""
    folder = ServerFolder(make_temporary_folder(_PREFIX))
    try:
        yield folder
    finally:
        if folder.keep:
            folder.life.unlink(missing_ok=True)
            (folder.path / _FAILED).touch()
            _remove_oldest(folder.path.parent)
        else:
            shutil.rmtree(folder.path, ignore_errors=True)


def _remove_oldest(place: Path) -> None:
    ages = {}
    for mark in place.glob(f"{_PREFIX}*/{_FAILED}"):
        try:
            ages[mark.parent] = mark.stat().st_mtime_ns
        except OSError:  # of another user, or another launcher was faster
            continue
    for folder in sorted(ages, key=ages.__getitem__)[:-MOST_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)
