"""A file of a page that a launcher and its models' processes share: signs of life, and the end.

Each process of a model has a record: how often it gave a sign of life, and how many requests it
holds. The launcher writes the phase. It is read and written through memory, so that a sign costs
nothing, and no question passes the server, where it would wait behind requests.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

VARIABLE = "DYCOKE_LIFE"  # of the models' environment: the file
BEAT_SECONDS = 0.25
_PHASE, _RECORD = struct.Struct("q"), struct.Struct("qqq")
_MOST_PROCESSES = 128
_SIZE = _RECORD.size * (_MOST_PROCESSES + 1)


class Phase(IntEnum):
    """SERVING; DRAINING: no new request is taken; ENDING: what is in flight gets an error."""

    SERVING = 0
    DRAINING = 1
    ENDING = 2


class Sign(NamedTuple):
    """beats: signs of life so far. in_flight: requests that the process holds."""

    pid: int
    beats: int
    in_flight: int


class Life:
    """The mapped file. Raises OSError for one that cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map = mmap.mmap(self._file, _SIZE)

    @classmethod
    def create(cls, path: Path) -> Life:
        path.write_bytes(bytes(_SIZE))
        return cls(path)

    @property
    def phase(self) -> Phase:
        return Phase(_PHASE.unpack_from(self._map, 0)[0])

    @phase.setter
    def phase(self, phase: Phase) -> None:
        _PHASE.pack_into(self._map, 0, phase)

    def signs(self) -> list[Sign]:
        """Of all processes that have a record."""
        records = (self._record(place) for place in range(1, _MOST_PROCESSES + 1))
        return [sign for sign in records if sign.pid]

    def claim(self) -> Slot:
        """A record for this process. Raises OSError if all are taken."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            for place in range(1, _MOST_PROCESSES + 1):
                if self._record(place).pid == 0:
                    slot = Slot(self._map, place)
                    slot.write(os.getpid(), 0, 0)
                    return slot
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        raise OSError(f"{self.path}: more than {_MOST_PROCESSES} processes")

    def close(self) -> None:
        self._map.close()
        os.close(self._file)

    def _record(self, place: int) -> Sign:
        return Sign(*_RECORD.unpack_from(self._map, place * _RECORD.size))


class Slot:
    """A process's own record."""

    def __init__(self, memory: mmap.mmap, place: int) -> None:
        self._map, self._at = memory, place * _RECORD.size

    def write(self, pid: int, beats: int, in_flight: int) -> None:
        _RECORD.pack_into(self._map, self._at, pid, beats, in_flight)

    def release(self) -> None:
        self.write(0, 0, 0)
