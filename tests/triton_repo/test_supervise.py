"""When a server that fails is started again, by a clock of the test's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pytest
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.triton_repo.launcher import RunningServer
from dycoke_trt.triton_repo.supervise import supervise


class Service:
    """A server that runs for some seconds and dies."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def wait(self) -> None:
        self.clock[0] += self.seconds
        raise DyCokeError("the server died")


@pytest.mark.parametrize(
    ("lives", "restarts", "delays"),
    [
        ([1] * 8, 7, [1, 2, 4, 8, 16, 30, 30]),
        ([1, 1, 61, 1, 1], 4, [1, 2, 1, 2]),  # a minute of service: the wait begins anew
        ([1, 61, 61], 2, [1, 1]),  # ... but restarts are used up
        ([1, 1, 601, 1, 1], 2, [1, 2, 1, 2]),  # ten minutes: they are there again
    ],
)
def test_delays_follow_how_long_servers_lived(
    monkeypatch: pytest.MonkeyPatch, lives: list[float], restarts: int, delays: list[float]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    services: Iterator[Any] = iter([Service(clock, seconds) for seconds in lives])
    waited: list[float] = []

    def start() -> AbstractContextManager[RunningServer]:
        return cast(AbstractContextManager[RunningServer], nullcontext(next(services)))

    with pytest.raises(DyCokeError, match=f"died; it was restarted {restarts} times already"):
        supervise(
            start,
            restarts=restarts,
            on_ready=lambda _: None,
            say=lambda _: None,
            wait=waited.append,
        )
    assert waited == delays
    assert next(services, None) is None
