"""Test 13: every process of a server is killed or stopped in turn, under load: it comes back."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from ....core.errors import DyCokeError
from . import canary
from .mixed import mixed_load
from .outcome import Outcome
from .stage import ENVIRONMENT, SERVER, Stage, processes

CRITERION = (
    "canaries identical < 30 s after each SIGKILL and SIGSTOP, by one restart; every request "
    "answered or refused clearly; no bad pattern in the log"
)
MOST_SECONDS = 30.0
HANG_SECONDS = 5  # --hang-timeout: what SIGSTOP may take of the 30 s
# Longer than a server has to run to count as settled, so that each death is a first one.
PAUSE = 75.0
_BAD = re.compile(r"Traceback|Fatal Python|Segmentation|signal .?11|corrupt|double free")
_READY = re.compile(r"ready: grpc (\S+), http (\S+), metrics (\S+);")
_RESTART = re.compile(r"(.*); restart \d+ of")


class Served:
    """A running `dycoke serve`."""

    def __init__(self, process: subprocess.Popen[str], log: Path, models: Path) -> None:
        self.process, self.log, self.models = process, log, models
        self.restarts: list[str] = []  # why the server was started again
        self.ready: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        line = self.ready.get(timeout=300)
        if (match := _READY.search(line)) is None:
            raise DyCokeError(f"dycoke serve did not start: {line or log.read_text()[-500:]}")
        self.grpc, self.http, self.metrics = match.groups()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if _READY.search(line):
                self.ready.put(line)
            elif match := _RESTART.search(line):
                self.restarts.append(match[1])
        self.ready.put("")

    def processes(self) -> dict[str, int]:
        """The server and its models, or fewer while it starts."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        for pid in " ".join(file.read_text() for file in children).split():
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
            if command.endswith(b"tritonserver"):
                return processes(int(pid), self.models)
        return {}


@contextmanager
def served(bundle: Path, *options: str) -> Iterator[Served]:
    """`dycoke serve` as a user runs it, on free ports."""
    with TemporaryDirectory(prefix="dycoke-kills-") as folder:
        log, models = Path(folder) / "log", Path(folder).resolve() / "models"
        ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
        command = [
            str(Path(sys.executable).parent / "dycoke"), "serve", str(bundle), *ports,
            "--threads=1", f"--repository={models}", f"--log-file={log}", *options,
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **ENVIRONMENT},
        ) as process:  # fmt: skip
            try:
                yield Served(process, log, models)
            finally:
                process.terminate()
                process.communicate(timeout=60)


def run(stage: Stage, quick: bool) -> Outcome:
    assert stage.bundle is not None
    options = ("--restart=1000", f"--hang-timeout={HANG_SECONDS}")
    with served(stage.bundle, *options) as server:
        before = canary.sing(server.grpc)
        figures, examples = asyncio.run(_rounds(server, before, quick))
        figures["bad patterns in the log"] = _bad_lines(server.log)
    slow = [name for name, seconds in figures["recovery, s"].items() if seconds >= MOST_SECONDS]
    bad = figures["internal"] + figures["hangs"] + figures["unclear"]
    kills = len(figures["recovery, s"])
    figures["restarts"] = len(server.restarts)
    if len(server.restarts) != kills:
        examples += server.restarts
    passed = not slow and not bad and not figures["bad patterns in the log"]
    passed = passed and figures["restarts"] == kills
    return Outcome(passed, figures, "; ".join(examples)[:2000])


async def _rounds(
    server: Served, before: list[Any], quick: bool
) -> tuple[dict[str, Any], list[str]]:
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    done = False

    def on_answer(kind: str, answer: Any) -> None:
        if kind in ("internal", "hangs", "lost"):
            examples.setdefault(kind, f"{kind}: {answer.error[:200]}")

    async def load() -> None:
        counts.update(
            await mixed_load(
                server.grpc, requests=10**9, width=4, seed=1, stop=lambda: done,
                on_answer=on_answer,
            )
        )  # fmt: skip

    loading = asyncio.create_task(load())
    recovery: dict[str, float] = {}
    canaries: Counter[str] = Counter()
    try:
        names = [name for name in server.processes() if name != SERVER]
        victims = ["tensorrt_llm"] if quick else [*names, SERVER]
        for what in (signal.SIGKILL,) if quick else (signal.SIGKILL, signal.SIGSTOP):
            for name in victims:
                await asyncio.sleep(2 if quick else PAUSE - MOST_SECONDS / 2)
                os.kill((await _alive(server))[name], what)
                seconds = await asyncio.to_thread(_recovery, server, before, canaries)
                recovery[f"{what.name} {name}"] = round(seconds, 1)
    finally:
        done = True
        await loading
    figures = {
        "recovery, s": recovery,
        "slowest, s": max(recovery.values()),
        "requests": counts.total(),
        **{kind: counts[kind] for kind in ("answered", "refused", "busy", "away", "cancelled")},
        "internal": counts["internal"],
        "hangs": counts["hangs"],
        "unclear": counts["lost"],
        "canaries wrong": canaries["wrong"],
    }
    return figures, list(examples.values())


async def _alive(server: Served) -> dict[str, int]:
    """The processes once all models are there."""
    for _ in range(600):
        alive = server.processes()
        if len(alive) > 5:
            return alive
        await asyncio.sleep(0.1)
    raise DyCokeError("the server did not come back within 60 s")


def _recovery(server: Served, before: list[Any], canaries: Counter[str]) -> float:
    """Seconds until all canaries are as they were, asked anew until then."""
    begun = time.monotonic()
    time.sleep(0.5)  # an answer that was on its way proves nothing
    while time.monotonic() - begun < 4 * MOST_SECONDS:
        answers = canary.sing(server.grpc)
        if not canary.changed(before, answers):
            return time.monotonic() - begun
        canaries["wrong"] += sum(
            not now.error and now.content != then.content
            for then, now in zip(before, answers, strict=True)
        )
        time.sleep(0.2)
    return float("inf")


def _bad_lines(log: Path) -> int:
    return sum(bool(_BAD.search(line)) for line in log.read_text(errors="replace").splitlines())
