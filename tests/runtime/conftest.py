from __future__ import annotations

from collections.abc import Callable

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.runtime.native.engine import EngineLimits, NativeEngine
from dycoke_trt.runtime.native.model import Qwen2
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
        model = Qwen2(CONFIG, random_weights(), blocks, tokens_per_block)
        return Client(NativeEngine(model, config or DyCokeConfig.off(), limits, **options))  # type: ignore[arg-type]

    return make
