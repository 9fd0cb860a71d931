"""Shared memory of a server's Python models: its names, and removing what a dead server left.

Names begin as Triton's own do, which newer servers refuse to register for clients; behind that
stand this project's mark and the start's. A locked file beside them says that they are in use: all
processes of the server hold the lock, so it is free once the last of them has ended.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ..core.errors import DyCokeError

FOLDER = Path("/dev/shm")
# kTritonSharedMemoryRegionPrefix of the server (src/common.h, since 2.59.1)
TRITON_PREFIX = "triton_python_backend_shm_region_"
_OURS = f"{TRITON_PREFIX}dycoke_"
_LOCK = "lock"


class Regions(NamedTuple):
    """prefix: of all names of one server. lock: descriptor that its processes inherit."""

    prefix: str
    lock: int


@contextmanager
def own_regions() -> Iterator[Regions]:
    """Names for one server; whatever has them is removed with the block, as is what servers left
    that were killed. Raises DyCokeError where shared memory cannot be used."""
    prefix = f"{_OURS}{uuid.uuid4().hex}_"
    path = FOLDER / f"{prefix}{_LOCK}"
    try:
        remove_left_over()
        # Locked before it has the name that others look for.
        lock = os.open(FOLDER / f".{path.name}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(FOLDER / f".{path.name}", path)
    except OSError as error:
        raise DyCokeError(
            f"{FOLDER}: cannot be written ({error.strerror}); models talk through it: free it, or "
            "give a container more with --shm-size"
        ) from None
    try:
        yield Regions(prefix, lock)
    finally:
        remove(prefix)
        os.close(lock)


def remove_left_over() -> list[str]:
    """Removes the regions of servers that have no process any more; returns their prefixes."""
    removed = []
    for path in FOLDER.glob(f"{_OURS}*_{_LOCK}"):
        with suppress(OSError):  # of another user, or another launcher was faster
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                removed.append(path.name.removesuffix(_LOCK))
                remove(removed[-1])
            finally:
                os.close(lock)
    return removed


def remove(prefix: str) -> None:
    for region in FOLDER.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
