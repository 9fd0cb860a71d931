"""Test 7: memory does not grow with the number of requests; a planted leak is found."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ....runtime.protocol import POSTPROCESSING
from .mixed import mixed_load
from .outcome import Outcome
from .stage import SERVER, Running, Stage, slopes

CRITERION = (
    "at most 1 MB per 1,000 mixed requests in each model's process after warm-up; a planted leak "
    "is found; the server's own growth is reported (what Triton keeps: docs/serving.md)"
)
MOST_MB = 1.0
PLANTED = 40_000  # bytes per call of the model that leaks
_LEAK = """
class Leaking(TritonPythonModel):
    kept = []

    def execute(self, requests):
        self.kept.append(bytearray({planted}))
        return super().execute(requests)


TritonPythonModel = Leaking
"""


def plant(repository: Path) -> None:
    """Makes one model keep PLANTED bytes of each call for ever."""
    file = repository / POSTPROCESSING / "1" / "model.py"
    file.write_text(file.read_text() + _LEAK.format(planted=PLANTED))


def run(stage: Stage, quick: bool) -> Outcome:
    warm, parts, size = (100, 4, 100) if quick else (3000, 10, 700)
    with stage.server() as server:
        growth, seen = asyncio.run(_slopes(server, warm, parts, size))
    with stage.server(change=plant) as server:
        control, _ = asyncio.run(_slopes(server, 50, 4, 50 if quick else 150))
    worst = max((name for name in growth if name != SERVER), key=lambda name: growth[name])
    figures: dict[str, Any] = {
        "requests": warm + parts * size,
        "MB per 1,000": growth,
        "worst": worst,
        "MB": seen,
        "planted, MB per 1,000": control[POSTPROCESSING],
    }
    caught = control[POSTPROCESSING] > MOST_MB
    note = "" if caught else "the planted leak was not found"
    if quick:  # all of it is warm-up: only that the measurement finds a leak is judged
        return Outcome(caught, figures, note or "too few requests to judge growth")
    return Outcome(growth[worst] <= MOST_MB and caught, figures, note)


async def _slopes(
    server: Running, warm: int, parts: int, size: int
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """MB per 1,000 requests of each process, by least squares over `parts` looks."""
    await mixed_load(server.grpc, requests=warm, width=4, seed=0)
    seen = [server.rss()]
    for part in range(parts):
        await mixed_load(server.grpc, requests=size, width=4, seed=part + 1)
        seen.append(server.rss())
    growth = slopes([number * size for number in range(len(seen))], seen)
    return growth, [{name: round(mb, 1) for name, mb in look.items()} for look in seen]
