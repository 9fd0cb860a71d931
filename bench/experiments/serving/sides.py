"""What both sides of the serving benchmark share: the load, its outcome, and processes that run it.

A side is a process of its own, so that its processor time is its own: it reads loads from its
standard input, a line of JSON each, and answers each with a line of measurements.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

QUESTION = "What happens in this video?"
SIDE = 128  # pixels; not the tower's, so that frames are resized as those of a real video


@dataclass(frozen=True)
class Rounds:
    """`rounds` times: `streams` requests at once, awaited together.

    Each asks about a video of `frames` frames for exactly `tokens` tokens. model: of the server.
    """

    model: str
    streams: int
    rounds: int
    frames: int
    tokens: int

    def video(self) -> NDArray[np.uint8]:
        """uint8 [1, F, H, W, 3], noise."""
        shape = (1, self.frames, SIDE, SIDE, 3)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@dataclass
class Outcome:
    """What a side saw: seconds of all rounds, tokens, responses with tokens, and the seconds from
    each request's start to its first token."""

    seconds: float = 0.0
    tokens: int = 0
    responses: int = 0
    first: list[float] = field(default_factory=list)

    def add(self, begun: float, arrived: Sequence[tuple[float, int]]) -> None:
        """A request's responses: when each came, and how many tokens it brought."""
        times = [(at, count) for at, count in arrived if count]
        self.tokens += sum(count for _, count in times)
        self.responses += len(times)
        if times:
            self.first.append(times[0][0] - begun)


def answer_loads(run: Callable[[Rounds], Outcome]) -> None:
    """A side's main loop."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(run(Rounds(**json.loads(line))))), flush=True)


class Side:
    """A running side, seen from the process that compares."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process
        self._read()

    def run(self, load: Rounds) -> Outcome:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(load)) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._read()))

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side of the benchmark ended: {self._process.args!r}")
        return line


@contextmanager
def side(module: str, *arguments: str, environment: Mapping[str, str]) -> Iterator[Side]:
    """The module of this package as a side, while the block runs."""
    command = [sys.executable, "-m", f"{__package__}.{module}", *arguments]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    with process:  # closes its input, which ends it, and waits
        yield Side(process)


def cpu_seconds(pid: int, proc: Path = Path("/proc")) -> float:
    """Processor time of a process and its descendants, user and system, in ticks of 10 ms each."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for file in proc.glob("[0-9]*/stat"):
        try:
            text = file.read_text()
        except OSError:
            continue  # it just ended
        fields = text.rpartition(")")[2].split()  # the name before may hold anything
        own = int(file.parent.name)
        parents[own] = int(fields[1])
        ticks[own] = sum(map(int, fields[11:15]))  # own and of children that were waited for
    return sum(ticks[one] for one in ticks if _descends(one, pid, parents)) / os.sysconf(
        "SC_CLK_TCK"
    )


def _descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while pid and pid != ancestor:
        pid = parents.get(pid, 0)
    return pid == ancestor
