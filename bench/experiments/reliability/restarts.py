"""Starts and stops a server many times with requests in between; counts crashes while it ends.

python -m dycoke_trt.bench.experiments.reliability.restarts BUNDLE --times 30
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...machine import machine
from .mixed import mixed_load
from .soak import BAD
from .stage import Stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--requests", type=int, default=40, help="between a start and its stop")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    bundle, before = options.bundle.resolve(), Path.cwd()
    with TemporaryDirectory(prefix="dycoke-restarts-") as folder:
        os.chdir(folder)  # where the kernel writes core dumps, by its default pattern
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))
        figures = run(bundle, options.times, options.requests, Path(folder))
        figures["core dumps"] = len(list(Path(folder).glob("core*")))
        os.chdir(before)
    report = {"machine": machine("nvidia-pytriton", "torch", "numpy", "grpcio"), **figures}
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def run(bundle: Path, times: int, requests: int, folder: Path) -> dict[str, Any]:
    stage, kinds, bad, stops = Stage(bundle=bundle), Counter[str](), [], []
    for number in range(times):
        log = folder / f"log{number}"
        with stage.server(log_file=log) as server:
            kinds += Counter(
                asyncio.run(mixed_load(server.grpc, requests=requests, width=4, seed=number))
            )
            stopping = time.monotonic()
        stops.append(time.monotonic() - stopping)
        bad += [line for line in log.read_text(errors="replace").splitlines() if BAD.search(line)]
    return {
        "starts and stops": times,
        "requests": dict(kinds),
        "bad lines in the log": len(bad),
        "first bad lines": bad[:5],
        "stop, s: median": round(statistics.median(stops), 2),
        "stop, s: most": round(max(stops), 2),
    }


if __name__ == "__main__":
    main()
