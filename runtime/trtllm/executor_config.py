"""What TensorRT-LLM's executor is told: of a whole engine, and of one request.

`bindings` is the module tensorrt_llm.bindings.executor everywhere. Followed: NVIDIA/TensorRT-LLM
cpp/tensorrt_llm/nanobind/executor/{executorConfig,request}.cpp at 008b2b8d, a commit before 1.2
(names, defaults, and which arguments are keywords; check_bindings.py tries them on what is
installed); kernels/samplingTopKKernels.h (most top_k) and executor.h (a prompt embedding table is
[V, hidden] in the model's dtype) of 0.17.
"""

from __future__ import annotations

import secrets
from typing import Any

import torch

from ...bundle.record import EngineRecord
from ...core.errors import DyCokeError
from ..request import Request
from ..sampling import Sampling

MOST_TOP_K = 1024  # TOP_K_MAX of its sampling kernels, which cut a larger one off


def executor_config(bindings: Any, record: EngineRecord) -> Any:
    """The same choices as in the C++ backend's parameters (triton_repo/trtllm.py): no block reuse,
    no eviction, one beam, chunked prompts."""
    options = record.options
    return bindings.ExecutorConfig(
        max_beam_width=1,
        scheduler_config=bindings.SchedulerConfig(
            capacity_scheduler_policy=bindings.CapacitySchedulerPolicy.GUARANTEED_NO_EVICT
        ),
        kv_cache_config=bindings.KvCacheConfig(
            enable_block_reuse=False,
            max_tokens=record.kv_tokens,
            free_gpu_memory_fraction=float(options["kv_fraction"]),
        ),
        enable_chunked_context=True,
        batching_type=bindings.BatchingType.INFLIGHT,
        max_batch_size=record.max_batch,
        max_num_tokens=int(options["max_num_tokens"]),
    )


def check_limits(request: Request, record: EngineRecord, rows: int) -> None:
    """Raises DyCokeError for what this engine was not built for. rows: most visual tokens."""
    longest = int(record.options["max_input_len"])
    if len(request.prompt) > longest:
        raise DyCokeError(
            f"the prompt has {len(request.prompt)} tokens, the engine takes {longest}; use fewer "
            "frames or a shorter question"
        )
    given = 0 if request.embeddings is None else len(request.embeddings)
    if given > rows:
        raise DyCokeError(
            f"{given} visual tokens, the engine takes {rows} per request; use fewer frames, or "
            "export with a larger --max-frames"
        )
    if request.sampling.top_k > MOST_TOP_K:
        raise DyCokeError(
            f"top_k={request.sampling.top_k} is not allowed; allowed: 0 to {MOST_TOP_K} with "
            "TensorRT-LLM, 0 takes all tokens"
        )


def executor_request(bindings: Any, request: Request, dtype: torch.dtype) -> Any:
    """dtype: of the engine's prompt_embedding_table.

    Always streaming: tokens then come one by one, so that an answer that is cancelled has its
    first part. Of several end ids all but one are stop words, which end an answer as well.
    """
    ends = sorted(request.end_ids)
    stop = [list(words) for words in request.stop] + [[token] for token in ends[1:]]
    table = None
    if request.embeddings is not None:
        table = bindings.PromptTuningConfig(
            embedding_table=request.embeddings.to(dtype).contiguous()
        )
    return bindings.Request(
        input_token_ids=request.prompt,
        max_tokens=request.max_tokens,
        streaming=True,
        sampling_config=sampling_config(bindings, request.sampling),
        output_config=bindings.OutputConfig(exclude_input_from_output=True),
        end_id=ends[0] if ends else None,
        stop_words=stop or None,
        prompt_tuning_config=table,
    )


def sampling_config(bindings: Any, sampling: Sampling) -> Any:
    """Its defaults differ from ours: without top_p it takes the best token, and without a seed
    always the same one."""
    if sampling.greedy:
        return bindings.SamplingConfig(beam_width=1, top_k=1)
    return bindings.SamplingConfig(
        beam_width=1,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        temperature=sampling.temperature,
        seed=secrets.randbits(64) if sampling.seed is None else sampling.seed,
    )
