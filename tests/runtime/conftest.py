from __future__ import annotations

from collections.abc import Callable

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.runtime.native.cpu import cpu_runner
from dycoke_trt.runtime.scheduler import EngineLimits, Scheduler
from dycoke_trt.tests.runtime.tiny import CONFIG, Client, random_weights


@pytest.fixture
def make_client() -> Callable[..., Client]:
    def make(
        config: DyCokeConfig | None = None,
        *,
        blocks: int = 64,
        tokens_per_block: int = 4,
        limits: EngineLimits | None = None,
        **options: object,
    ) -> Client:
        pruning = config or DyCokeConfig.off()
        runner = cpu_runner(CONFIG, random_weights(), blocks, tokens_per_block, pruning)
        return Client(Scheduler(runner, limits, **options))  # type: ignore[arg-type]

    return make
