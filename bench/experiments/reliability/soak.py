"""A soak: mixed load for a while with Python's debug hooks and core dumps, and what came of it.

python -m dycoke_trt.bench.experiments.reliability.soak BUNDLE --minutes 30 -o result.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ....core.errors import DyCokeError
from ...machine import machine
from . import canary
from .client import Answer
from .malloc_hooks import COMPILER, hooked_environment
from .mixed import mixed_load
from .stage import Running, Stage, slopes

# Of the server's log; what a client's own wrong request brings about is no such line.
BAD = re.compile(r"Traceback|Fatal Python|Segmentation|signal .?11|corrupt|double free|assert")
_LOOK_SECONDS = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--width", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-hooks", action="store_true", help="memory as it is in service")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    hooks = COMPILER is not None and not options.no_hooks
    with TemporaryDirectory(prefix="dycoke-soak-") as folder:
        before, bundle = Path.cwd(), options.bundle.resolve()
        os.chdir(folder)  # where the kernel writes core dumps, by its default pattern
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))
        environment = hooked_environment(Path(folder)) if hooks else {}
        figures = run(bundle, options, environment)
        figures["core dumps"] = len(list(Path(folder).glob("core*")))
        os.chdir(before)
    report = {
        "machine": machine("nvidia-pytriton", "torch", "numpy", "grpcio"),
        "minutes": options.minutes,
        "width": options.width,
        "seed": options.seed,
        "debug hooks": hooks,
        **figures,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def run(bundle: Path, options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    examples: dict[str, str] = {}

    def on_answer(kind: str, answer: Answer) -> None:
        if kind in ("internal", "hangs", "lost", "away"):
            examples.setdefault(kind, answer.error[:300])

    stage = Stage(bundle=bundle)
    died = ""
    looks: list[tuple[int, dict[str, float]]] = []
    begun = time.monotonic()
    with TemporaryDirectory(prefix="dycoke-soak-log-") as folder:
        log = Path(folder) / "log"
        try:
            with stage.server(environment=environment, log_file=log) as server:
                sung = canary.sing(server.grpc)
                counts = asyncio.run(_soak(server, options, on_answer, looks))
                changed = canary.changed(sung, canary.sing(server.grpc))
                server.wait(0)
                stopping = time.monotonic()
            stop = time.monotonic() - stopping
        except DyCokeError as error:
            died, counts, changed, stop = str(error), {}, -1, -1.0
        text = log.read_text(errors="replace")
    half = looks[len(looks) // 2 :]  # growth is that of the second half
    bad = [line for line in text.splitlines() if BAD.search(line)]
    return {
        "requests": sum(counts.values()),
        "kinds": dict(counts),
        "seconds": round(time.monotonic() - begun, 1),
        "died": died,
        "canaries changed": changed,
        "stop, s": round(stop, 2),
        "bad lines in the log": len(bad),
        "first bad lines": bad[:5],
        "examples": examples,
        "MB per 1,000 requests": slopes(*zip(*half, strict=True)) if len(half) >= 3 else {},
        "MB at first and last": [looks[0][1], looks[-1][1]] if looks else [],
    }


async def _soak(
    server: Running,
    options: argparse.Namespace,
    on_answer: Any,
    looks: list[tuple[int, dict[str, float]]],
) -> dict[str, int]:
    end = time.monotonic() + 60 * options.minutes
    next_look = time.monotonic()
    count = 0

    def see(kind: str, answer: Answer) -> None:
        nonlocal next_look, count
        on_answer(kind, answer)
        count += 1
        if time.monotonic() >= next_look:
            server.wait(0)  # raises once a process died
            next_look = time.monotonic() + _LOOK_SECONDS
            looks.append((count, {name: round(mb, 2) for name, mb in server.rss().items()}))

    return await mixed_load(
        server.grpc,
        requests=10**9,
        width=options.width,
        seed=options.seed,
        stop=lambda: time.monotonic() > end,
        on_answer=see,
    )


if __name__ == "__main__":
    main()
