"""Whether the executor bindings of the TensorRT-LLM that is installed are those that we call.

Every configuration that serving makes is made once, with the names and types of a real one. Run as
`python -m dycoke_trt.runtime.trtllm.check_bindings`: what is compiled may print, or end it.
"""

from __future__ import annotations

from typing import Any

import torch

from ...bundle.record import EngineRecord
from ..request import Request
from ..sampling import Sampling
from .executor_config import executor_config, executor_request

METHODS = (
    "await_responses", "can_enqueue_requests", "cancel_request", "enqueue_request",
    "get_latest_iteration_stats", "shutdown",
)  # fmt: skip
_REASONS = ("END_ID", "STOP_WORDS", "LENGTH", "CANCELLED")


def check_bindings(bindings: Any) -> int:
    """How many things were made or found. bindings: tensorrt_llm.bindings.executor.

    Raises AttributeError or TypeError, as the bindings do, for the first that is not as we use it.
    """
    record = EngineRecord(
        target="check", bundle_hash="", backend="trtllm", tokens_per_block=32, kv_tokens=4096,
        max_batch=1, versions={}, options={"kv_fraction": 0.9, "max_num_tokens": 1024},
    )  # fmt: skip
    table = torch.zeros(2, 8)
    samplings = (Sampling(), Sampling(temperature=0.7, top_k=5, top_p=0.9, seed=1))
    made = [executor_config(bindings, record), bindings.ModelType.DECODER_ONLY]
    made += [
        executor_request(
            bindings,
            Request(
                "check", [1, 2, 100], 4, lambda _: None, table, sampling, frozenset({3, 4}), ((5,),)
            ),
            torch.float16,
        )
        for sampling in samplings
    ]
    made += [getattr(bindings.FinishReason, name) for name in _REASONS]
    made += [getattr(bindings.Executor, name) for name in METHODS]
    return len(made)


def main() -> None:
    import tensorrt_llm.bindings.executor as bindings

    print(f"checked {check_bindings(bindings)}")


if __name__ == "__main__":
    main()
