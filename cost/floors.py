"""Time floors: what each stage must move and compute, and the least time that a GPU needs for it.

A floor assumes peak bandwidth or peak FLOP/s, whichever binds, perfect overlap of the two, and no
launch, synchronisation or communication cost. Measured times are reported as multiples of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..compress.base import survivor_count
from ..core.config import DyCokeConfig
from ..core.counts import blocks_kept, tokens_kept
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from .dims import ModelDims
from .flops import true_decode_flops, true_prefill_flops, true_vision_flops
from .gpus import Gpu

ELEMENT_BYTES = Dtype.BF16.bytes  # or fp16: weights, activations and KV


@dataclass(frozen=True)
class Floor:
    """Bytes moved, FLOPs done and the resulting least time in seconds of one stage."""

    stage: str
    bytes: float
    flops: float
    seconds: float
    bound: Literal["bandwidth", "compute"]


@dataclass(frozen=True)
class Workload:
    """`batch` sequences that each hold one video.

    text: prompt tokens beside the visual ones; generated: tokens in context on average while
    decoding; span_start: prompt tokens before the first visual one; gpus: GPUs that share weights
    and KV evenly (tensor parallelism without communication).
    """

    frames: int = 32
    batch: int = 1
    text: int = 64
    generated: int = 64
    span_start: int = 14
    tokens_per_block: int = 64
    gpus: int = 1

    def __post_init__(self) -> None:
        for name in ("frames", "batch", "tokens_per_block", "gpus"):
            _at_least(name, getattr(self, name), 1)
        for name in ("text", "generated"):
            _at_least(name, getattr(self, name), 0)
        if not 0 <= self.span_start <= self.text:
            raise DyCokeError(
                f"span_start={self.span_start} is not allowed; "
                f"allowed: 0 <= span_start <= text={self.text}"
            )


@dataclass(frozen=True)
class Floors:
    """The floors of one setting: `stages` are vision, ttm, prefill, decode step, in this order."""

    setting: str
    visual_tokens: int  # in the prompt, image_newline included
    attended_tokens: int  # visual tokens that layers >= l attend to
    kv_bytes: int  # per sequence, prompt and generated tokens
    stages: tuple[Floor, ...]

    @property
    def time_to_first_token(self) -> float:
        """Seconds from decoded frames to the first token, the whole batch at once."""
        return sum(stage.seconds for stage in self.stages if stage.stage != "decode step")

    @property
    def time_per_token(self) -> float:
        """Seconds per decode step."""
        return self.stages[-1].seconds


def compare_floors(
    model: ModelDims, gpu: Gpu, config: DyCokeConfig, workload: Workload
) -> tuple[Floors, Floors, Floors]:
    """Floors without compression, with TTM alone, and with TTM and dynamic pruning."""
    config.check_layers(model.llm.layers)
    off, merged, both = compared_configs(config)
    return (
        floors(model, gpu, off, workload, "full"),
        floors(model, gpu, merged, workload, "TTM"),
        floors(model, gpu, both, workload, "TTM + DP"),
    )


def compared_configs(config: DyCokeConfig) -> tuple[DyCokeConfig, DyCokeConfig, DyCokeConfig]:
    """The configurations of compare_floors."""
    return DyCokeConfig.off(), config.with_changes(p=0.0), config


def floors(
    model: ModelDims, gpu: Gpu, config: DyCokeConfig, workload: Workload, setting: str = ""
) -> Floors:
    """The floors of one configuration; decode steps are taken as pruned steps."""
    v, llm = model.vision, model.llm
    frames, batch = workload.frames, workload.batch
    raw = frames * v.tokens_per_frame
    merged = survivor_count(frames, v.tokens_per_frame, config)
    visual = model.visual_tokens(frames, config)
    attended = attended_visual_tokens(visual, config, workload)
    prompt = visual + workload.text
    context = prompt + workload.generated
    pruned_context = context - (visual - attended)
    full_layers = min(config.l, llm.layers) if config.p > 0 else llm.layers

    def floor(stage: str, moved: float, flops: float) -> Floor:
        by_bandwidth = moved / (gpu.bandwidth * workload.gpus)
        by_compute = flops / (gpu.flops * workload.gpus)
        bound: Literal["bandwidth", "compute"] = (
            "bandwidth" if by_bandwidth >= by_compute else "compute"
        )
        return Floor(stage, moved, flops, max(by_bandwidth, by_compute), bound)

    frame_bytes = 3 * (v.patches_per_side * v.patch) ** 2  # uint8
    features = raw * llm.hidden * ELEMENT_BYTES
    survivors = merged * llm.hidden * ELEMENT_BYTES
    vision = floor(
        "vision",
        model.vision_weights * ELEMENT_BYTES + batch * (frames * frame_bytes + features),
        batch * true_vision_flops(model, frames),
    )
    # Cosines take about 6 FLOPs per element; without TTM the features are passed on as they are.
    ttm_runs = merged < raw
    ttm = floor(
        "ttm",
        batch * (features + survivors) if ttm_runs else 0.0,
        batch * 6.0 * raw * llm.hidden if ttm_runs else 0.0,
    )
    kv_token = llm.kv_bytes_per_token(ELEMENT_BYTES)
    weights = llm.weights_read_per_step * ELEMENT_BYTES
    prefill = floor(
        "prefill",
        weights + batch * prompt * kv_token,
        batch * true_prefill_flops(llm, prompt, lm_head=True),
    )
    kv_layer = llm.kv_bytes_per_token_layer(ELEMENT_BYTES)
    kv_read = kv_layer * (full_layers * context + (llm.layers - full_layers) * pruned_context)
    decode = floor(
        "decode step",
        weights + batch * kv_read,
        batch * true_decode_flops(llm, context, pruned_context, full_layers),
    )
    return Floors(setting, visual, attended, context * kv_token, (vision, ttm, prefill, decode))


def prompt_table_traffic(table: int, *, slots: int, live: int) -> int:
    """Bytes that a step of TensorRT-LLM moves for prompt tables of `table` bytes each.

    Every step, decode steps too, clears the buffer of all `slots` (the engine's largest batch) and
    copies the table of each of the `live` sequences into it: PromptTuningBuffers::fill, which
    RuntimeBuffers calls unconditionally (NVIDIA/TensorRT-LLM cpp/tensorrt_llm/batch_manager/
    promptTuningBuffers.cpp at 2868d79, runtimeBuffers.cpp at 092a5a1).
    """
    return (slots + 2 * live) * table


def prompt_tables(
    model: ModelDims, gpu: Gpu, config: DyCokeConfig, workload: Workload, *, slots: int
) -> Floor:
    """What those tables add to each step of a TensorRT-LLM engine; every GPU has all of them."""
    if slots < workload.batch:
        raise DyCokeError(
            f"max_batch={slots} is not allowed; allowed: at least batch={workload.batch}"
        )
    visual = model.visual_tokens(workload.frames, config)
    table = visual * model.llm.hidden * ELEMENT_BYTES
    moved = prompt_table_traffic(table, slots=slots, live=workload.batch)
    return Floor("prompt tables", moved, 0.0, moved / gpu.bandwidth, "bandwidth")


def attended_visual_tokens(visual: int, config: DyCokeConfig, workload: Workload) -> int:
    """Visual tokens that layers >= l attend to in a pruned step.

    Block granularity: only blocks that lie inside the span are prunable, its edges stay.
    """
    if config.granularity == "token":
        return tokens_kept(visual, config.p)
    size = workload.tokens_per_block
    first = -(-workload.span_start // size)
    interior = max(0, (workload.span_start + visual) // size - first)
    return visual - size * (interior - blocks_kept(interior, config.p))


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise DyCokeError(f"{name}={value} is not allowed; allowed: an integer >= {least}")
