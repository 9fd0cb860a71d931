"""Configurations, requests and results of tensorrt_llm.bindings.executor: names, order, types.

As bound in NVIDIA/TensorRT-LLM cpp/tensorrt_llm/nanobind/executor/{bindings,executorConfig,
request}.cpp at 008b2b8d (before 1.2). An argument of another name, another type or, where the
binding wants a keyword, by position is refused, as nanobind does it. What the stand-in does not
play (LoRA, drafts, encoders, ...) has the type None: only its default is taken.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, fields
from enum import Enum
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch

ModelType = Enum("ModelType", "DECODER_ONLY ENCODER_ONLY ENCODER_DECODER")
BatchingType = Enum("BatchingType", "STATIC INFLIGHT")
CapacitySchedulerPolicy = Enum(
    "CapacitySchedulerPolicy", "MAX_UTILIZATION GUARANTEED_NO_EVICT STATIC_BATCH"
)
FinishReason = Enum("FinishReason", "NOT_FINISHED END_ID STOP_WORDS LENGTH TIMED_OUT CANCELLED")


def fits(value: object, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(one, get_args(kind)[0]) for one in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


class Bound:
    """A class whose constructor checks types."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if not fits(value, hints[one.name]):
                name = type(self).__name__
                raise TypeError(f"{name}: {one.name}={value!r}: incompatible function arguments")


@dataclass
class SchedulerConfig(Bound):
    capacity_scheduler_policy: CapacitySchedulerPolicy = CapacitySchedulerPolicy.GUARANTEED_NO_EVICT
    context_chunking_policy: None = None
    dynamic_batch_config: None = None


@dataclass
class KvCacheConfig(Bound):
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    max_attention_window: list[int] | None = None
    sink_token_length: int | None = None
    free_gpu_memory_fraction: float | None = None
    host_cache_size: int | None = None
    onboard_blocks: bool = True
    cross_kv_cache_fraction: float | None = None
    secondary_offload_min_priority: int | None = None
    event_buffer_max_size: int = 0
    _: KW_ONLY
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: bool = True
    use_uvm: bool = False
    runtime_defaults: None = None


@dataclass
class ExecutorConfig(Bound):
    max_beam_width: int = 1
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)
    kv_cache_config: KvCacheConfig = field(default_factory=KvCacheConfig)
    enable_chunked_context: bool = False
    normalize_log_probs: bool = True
    iter_stats_max_iterations: int = 1000
    request_stats_max_iterations: int = 0
    batching_type: BatchingType = BatchingType.INFLIGHT
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    parallel_config: None = None
    peft_cache_config: None = None
    logits_post_processor_config: None = None
    decoding_config: None = None
    use_gpu_direct_storage: bool = False
    gpu_weights_percent: float = 1.0
    max_queue_size: int | None = None
    extended_runtime_perf_knob_config: None = None
    debug_config: None = None
    recv_poll_period_ms: int = 0
    max_seq_idle_microseconds: int = 180_000_000
    spec_dec_config: None = None
    guided_decoding_config: None = None
    additional_model_outputs: None = None
    cache_transceiver_config: None = None
    gather_generation_logits: bool = False
    mm_embedding_offloading: bool = False
    enable_trt_overlap: bool = False


@dataclass
class SamplingConfig(Bound):
    beam_width: int = 1
    _: KW_ONLY
    top_k: int | None = None
    top_p: float | None = None
    top_p_min: float | None = None
    top_p_reset_ids: int | None = None
    top_p_decay: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    beam_search_diversity_rate: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    early_stopping: int | None = None
    no_repeat_ngram_size: int | None = None
    num_return_sequences: int | None = None
    min_p: float | None = None
    beam_width_array: list[int] | None = None


@dataclass
class OutputConfig(Bound):
    return_log_probs: bool = False
    return_context_logits: bool = False
    return_generation_logits: bool = False
    exclude_input_from_output: bool = False
    return_encoder_output: bool = False
    return_perf_metrics: bool = False
    additional_model_outputs: None = None


@dataclass
class PromptTuningConfig(Bound):
    embedding_table: torch.Tensor
    input_token_extra_ids: list[int] | None = None


@dataclass
class Request(Bound):
    input_token_ids: list[int]
    max_tokens: int
    _: KW_ONLY
    streaming: bool = False
    sampling_config: SamplingConfig = field(default_factory=SamplingConfig)
    output_config: OutputConfig = field(default_factory=OutputConfig)
    end_id: int | None = None
    pad_id: int | None = None
    position_ids: list[int] | None = None
    bad_words: list[list[int]] | None = None
    stop_words: list[list[int]] | None = None
    embedding_bias: torch.Tensor | None = None
    external_draft_tokens_config: None = None
    prompt_tuning_config: PromptTuningConfig | None = None
    multimodal_input: None = None
    multimodal_embedding: torch.Tensor | None = None
    mrope_config: None = None
    lora_config: None = None
    lookahead_config: None = None
    kv_cache_retention_config: None = None
    logits_post_processor_name: str | None = None
    logits_post_processor: None = None
    encoder_input_token_ids: list[int] | None = None
    client_id: int | None = None
    return_all_generated_tokens: bool = False
    priority: float = 0.5
    type: None = None  # CONTEXT_AND_GENERATION
    context_phase_params: None = None
    encoder_input_features: torch.Tensor | None = None
    encoder_output_length: int | None = None
    cross_attention_mask: torch.Tensor | None = None
    num_return_sequences: int = 1
    eagle_config: None = None
    skip_cross_attn_blocks: torch.Tensor | None = None
    guided_decoding_params: None = None
    language_adapter_uid: int | None = None
    allotted_time_ms: None = None


@dataclass
class Result:
    is_final: bool
    output_token_ids: list[list[int]]  # of each beam; while streaming, the new ones
    finish_reasons: list[FinishReason]
    sequence_index: int = 0
    is_sequence_final: bool = False


class Response:
    """Either a result or an error: asking for the other one throws."""

    def __init__(self, request_id: int, outcome: Result | str) -> None:
        self.request_id = request_id
        self._outcome = outcome

    def has_error(self) -> bool:
        return isinstance(self._outcome, str)

    @property
    def error_msg(self) -> str:
        if not isinstance(self._outcome, str):
            raise RuntimeError("Cannot get error message if there is no error")
        return self._outcome

    @property
    def result(self) -> Result:
        if isinstance(self._outcome, str):
            raise RuntimeError(self._outcome)
        return self._outcome


@dataclass
class KvCacheStats:
    max_num_blocks: int
    free_num_blocks: int
    used_num_blocks: int
    tokens_per_block: int


@dataclass
class IterationStats:
    num_active_requests: int
    num_queued_requests: int
    kv_cache_stats: KvCacheStats | None
