"""What the native backend does not run yet is refused by name, never ignored."""

from typing import Any

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.eval.native import NativeAnswerer


@pytest.mark.parametrize("change", [{"memory": 0.5}, {"order": "importance"}])
def test_memory_and_order(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(DyCokeError, match=f"{name}=.* is not run by the native backend"):
        NativeAnswerer(MODEL_DIR, 16)._engine(DyCokeConfig(**change))
