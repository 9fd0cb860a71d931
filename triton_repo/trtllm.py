"""The repository's model `tensorrt_llm` on engines.

Tensors and parameters of `tensorrt_llm` are those of Triton's TensorRT-LLM backend
(triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt at 0c8de69, 1.x). Which of
them may be left out was read in NVIDIA/TensorRT-LLM triton_backend/inflight_batcher_llm/src:
model_instance_state.cc at 0c8de69 and c8c6df0 (the same there) and model_state.cc at 5cdd692, whose
GetParameter throws "Cannot find parameter with name" where there is none. UNGUARDED are read
outside of any `try`; all others have a default, of which enable_kv_cache_reuse = true must not be.

The line: getExecutorConfigFromParams hands dynamic_batching.default_queue_policy.max_queue_size to
the executor, whose enqueueRequests (cpp/tensorrt_llm/executor/executorImpl.cpp at 036a60f) refuses
more than so many beside its batch, decoupled or not. Without it the line has no end.
"""

from __future__ import annotations

from ..bundle.manifest import Manifest
from ..bundle.paths import LLM_ENGINE
from ..bundle.record import EngineRecord
from ..engines.refusals import refuse
from ..runtime import protocol as p
from .config_pbtxt import ModelConfig

# What runs `tensorrt_llm` on engines: TensorRT-LLM's backend in C++, or our model in Python.
CPP_BACKEND, EXECUTOR = "tensorrtllm", "executor"
LLM_CHOICES = ("auto", CPP_BACKEND, EXECUTOR)
# Without one of these the model does not load. Of guided decoding, which is off, the last three may
# be empty. The model's path is read inside a `try`, and refused when it is not there.
UNGUARDED = (
    "gpt_model_type", "tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend"
)  # fmt: skip
_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
_CANCEL_MILLISECONDS = 100  # how often the backend looks for cancelled requests
_QUEUE_MICROSECONDS = 0  # in-flight batching needs no waiting for company
# Where TRTLLM_ORCHESTRATOR=1 spawns a worker, two threads look for messages this often; at 0, the
# default, without a pause. Ranks under mpirun, as the launcher starts them, have no such threads.
_RECEIVE_MILLISECONDS = 1


def llm_parameters(manifest: Manifest, record: EngineRecord, engines: str) -> dict[str, str]:
    """Parameters of the backend; engines: the engine directory as the server sees it.

    Raises DyCokeError for a combination that dynamic pruning forbids.
    """
    parameters = {
        "gpt_model_type": "inflight_fused_batching",
        "tokenizer_dir": "",
        "xgrammar_tokenizer_info_path": "",
        "guided_decoding_backend": "",
        "gpt_model_path": f"{engines}/{LLM_ENGINE}",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "enable_kv_cache_reuse": "false",
        "enable_chunked_context": "true",
        "max_beam_width": "1",
        # Both bound the pool: the plan's tokens are what fits beside the vision plan.
        "max_tokens_in_paged_kv_cache": str(record.kv_tokens),
        "kv_cache_free_gpu_mem_fraction": f"{record.options.get('kv_fraction', 0.9):g}",
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": str(_CANCEL_MILLISECONDS),
        "recv_poll_period_ms": str(_RECEIVE_MILLISECONDS),
        "executor_worker_path": _WORKER,
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
    }
    if manifest.config.p > 0:
        refuse(parameters, where="tensorrt_llm/config.pbtxt")
    return parameters


def llm_config(
    manifest: Manifest, record: EngineRecord, engines: str, max_queue: int
) -> ModelConfig:
    """max_queue: requests that wait for the LLM step, beside those of a full batch; > 0."""
    return ModelConfig(
        p.LLM,
        p.llm_inputs(manifest.llm.hidden, manifest.llm.dtype),
        (*p.TOKENS, *p.TOKEN_COUNTS),
        backend=CPP_BACKEND,
        decoupled=True,
        max_batch=record.max_batch,
        ragged=True,
        queue_microseconds=_QUEUE_MICROSECONDS,
        max_queue=max_queue,
        parameters=llm_parameters(manifest, record, engines),
    )
