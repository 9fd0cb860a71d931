"""How a model fits on a target: weights, KV pool, plugin state, limits. Nothing is built for it.

Exact from dimensions: weights per rank, bytes of KV and of plugin state. Estimated, and marked so:
activations and what CUDA, NCCL and the server take (RESERVE). Bytes are per GPU; every rank is
sized like rank 0, which holds the vision plan too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from ..bundle.llm_layout import rank_shapes
from ..core.errors import DyCokeError
from ..core.pool import FAST_BLOCKS
from ..cost.dims import LlmDims
from ..cost.floors import prompt_table_traffic
from .model import Model
from .plugin_interfaces import V3, check_interface
from .target_gpus import TargetGpu

MOST_SEQUENCES = 64  # default of --max-batch where memory and profile allow more
# --profile: what the prompt tables of an engine may cost a sequence that runs alone, as a part of
# the bytes that its decode step reads anyway (cost/floors.py). A larger batch makes them larger for
# everyone, in every step: `latency` keeps them out of sight, `balanced` at a twentieth, and
# `throughput` takes what fits, since a full batch shares one reading of the weights.
PROFILES = {"latency": 0.01, "balanced": 0.05, "throughput": None}
TABLE_COPIES = 3  # in the engine's buffer, with each request, in Triton's pool
TEXT_TOKENS, NEW_TOKENS = 512, 1024  # of one request, beside its video: what engines allow
VIDEO_TEXT, VIDEO_ANSWER = 64, 256  # of one request, when videos that fit are counted
RESERVE = 2 * 2**30  # CUDA context, cuBLAS, NCCL, sampling, Triton's own pools
CONTEXT_TOKENS = 8192  # packed tokens of one step; long prompts are fed in such chunks


@dataclass(frozen=True)
class Videos:
    """How many requests with one video of `frames` frames the KV pool holds at once."""

    frames: int
    k: float
    visual_tokens: int
    concurrent: int


@dataclass(frozen=True)
class BuildPlan:
    """Limits that engines are built with, and the bytes behind them (of each GPU)."""

    model: str
    target: str
    sm: int
    memory: int
    tp: int
    tokens_per_block: int
    max_batch: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    max_table_rows: int  # rows of the prompt embedding table of a full batch
    profile: str | None  # that max_batch is of; None: it was given
    plugin_interface: str  # v3 or v2
    kv_fraction: float
    weights_total: int  # of the LLM, each weight once
    weights_per_rank: int  # embedding table whole on every rank, as the checkpoint has it
    weights_per_rank_split: int  # if the table were split over the ranks (it is not)
    vision_weights: int
    tables: int  # prompt embedding tables of a full batch, TABLE_COPIES of each
    activations: int  # estimated: LLM and vision step, logits
    reserve: int  # estimated
    kv_bytes_per_token: int
    kv_blocks: int
    kv_bytes: int
    state_capacity: int  # blocks that the plugin keeps state for; 0 without dynamic pruning
    state_bytes: int
    videos: tuple[Videos, ...]

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.tokens_per_block


@cache
def rank_weights(llm: LlmDims, tp: int, *, split_embedding: bool = False) -> int:
    """Weights on one rank: q, k, v, o, FFN and lm_head are split, norms and embedding are whole.

    lm_head is a tensor of its own even where the model ties it to the embedding, as in the
    exported checkpoint. With more ranks than KV heads every rank holds a copy of one head.
    """
    weights = sum(math.prod(shape) for shape in rank_shapes(llm, tp).values())
    embedding = llm.vocab * llm.hidden
    return weights - (embedding - embedding // tp if split_embedding else 0)


def state_bytes_per_block(tokens_per_block: int, *, averages: bool) -> int:
    """Plugin state of one KV block (core/state.py): scores, their averages where selection has a
    memory, visual marks, keep bit, record."""
    return tokens_per_block * (4 + 4 * averages + 1) + 1 + 4 * 4


def plan_build(
    model: Model,
    target: TargetGpu,
    *,
    tokens_per_block: int = 32,
    max_batch: int | None = None,
    profile: str | None = None,
    plugin_interface: str = V3,
    kv_fraction: float = 0.9,
    blocks: tuple[int, ...] = FAST_BLOCKS,
) -> BuildPlan:
    """The plan; max_batch: by default as many sequences as have room for a longest video each, and
    as the profile allows (PROFILES; default balanced).

    kv_fraction: of what weights, activations and reserve leave. blocks: allowed sizes. Raises
    DyCokeError for options out of range, and for a model or a batch that does not fit, with both
    sizes and the way out.
    """
    if tokens_per_block not in blocks:
        raise DyCokeError(
            f"--tokens-per-block {tokens_per_block} is not allowed; "
            f"allowed: {', '.join(map(str, blocks))}"
        )
    if not 0 < kv_fraction < 1:
        raise DyCokeError(f"--kv-fraction {kv_fraction} is not allowed; allowed: 0 < fraction < 1")
    if max_batch is not None and max_batch < 1:
        raise DyCokeError(f"--max-batch {max_batch} is not allowed; allowed: an integer >= 1")
    if max_batch is not None and profile is not None:
        raise DyCokeError(f"--profile {profile} sets what --max-batch {max_batch} does; give one")
    chosen = (profile or "balanced") if max_batch is None else None
    most = max_batch if max_batch is not None else _most_sequences(model, chosen or "")
    check_interface(plugin_interface)
    batches = range(most, 0, -1) if max_batch is None else [most]
    for batch in batches:
        plan = _plan(model, target, tokens_per_block, batch, kv_fraction)
        plan = replace(plan, profile=chosen, plugin_interface=plugin_interface)
        room = plan.kv_blocks * tokens_per_block // plan.max_seq_len
        if room >= batch or (max_batch is not None and room >= 1):
            return plan
    needed = plan.weights_per_rank + plan.vision_weights + plan.activations + plan.reserve
    needed += plan.tables
    needed += plan.max_seq_len * plan.kv_bytes_per_token
    raise DyCokeError(
        f"{model.name} does not fit on {target.name}: one sequence needs {needed / 1e9:.1f} GB per "
        f"GPU at TP={model.tp}, it has {target.memory / 1e9:.1f} GB; export with a larger --tp or "
        "a smaller --max-frames, or choose a larger target"
    )


def _plan(model: Model, target: TargetGpu, block: int, batch: int, fraction: float) -> BuildPlan:
    llm, tp, element = model.llm, model.tp, model.dtype.bytes
    visual = model.visual_tokens(model.max_frames)
    longest_input = min(visual + TEXT_TOKENS, model.max_positions - 1)
    longest = min(longest_input + NEW_TOKENS, model.max_positions)
    packed = min(CONTEXT_TOKENS, -(-longest_input // block) * block)
    weights = rank_weights(llm, tp) * element
    kv_token = llm.of_rank(tp).kv_bytes_per_token(element)
    activations = _activations(model, packed, batch)
    tables = TABLE_COPIES * batch * _table_bytes(model)
    left = target.memory - weights - model.vision_weights - activations - tables - RESERVE
    pruned = model.config.p > 0
    averages = model.config.memory > 0
    state = state_bytes_per_block(block, averages=averages) if pruned else 0
    # As the plugin sizes its state: no pool can outgrow the GPU, whatever a server is told, so that
    # no block is ever without state, for about a thousandth of the memory.
    capacity = int(target.memory // (block * kv_token)) if pruned else 0
    blocks = max(0, int((left * fraction - capacity * state) // (block * kv_token)))
    return BuildPlan(
        model=model.name, target=target.name, sm=target.sm, memory=int(target.memory), tp=tp,
        tokens_per_block=block, max_batch=batch, max_input_len=longest_input, max_seq_len=longest,
        max_num_tokens=max(packed, batch), max_table_rows=batch * visual, profile=None,
        plugin_interface=V3, kv_fraction=fraction,
        weights_total=llm.weights * element, weights_per_rank=weights,
        weights_per_rank_split=rank_weights(llm, tp, split_embedding=True) * element,
        vision_weights=model.vision_weights, tables=tables, activations=activations,
        reserve=RESERVE,
        kv_bytes_per_token=kv_token, kv_blocks=blocks, kv_bytes=blocks * block * kv_token,
        state_capacity=capacity, state_bytes=capacity * state,
        videos=_videos(model, blocks, block),
    )  # fmt: skip


def _table_bytes(model: Model) -> int:
    """Of the longest video's prompt embedding table; every rank has all of it."""
    return model.visual_tokens(model.max_frames) * model.llm.hidden * model.dtype.bytes


def _most_sequences(model: Model, profile: str) -> int:
    """The largest batch, at most MOST_SEQUENCES, whose tables a profile allows; at least 1."""
    if profile not in PROFILES:
        raise DyCokeError(f"--profile {profile!r} is not allowed; allowed: {', '.join(PROFILES)}")
    share = PROFILES[profile]
    if share is None:
        return MOST_SEQUENCES
    embedding = model.llm.vocab * model.llm.hidden
    read = rank_weights(model.llm, model.tp) - embedding  # of that a row per token
    read *= model.dtype.bytes
    fits = [
        batch
        for batch in range(1, MOST_SEQUENCES + 1)
        if prompt_table_traffic(_table_bytes(model), slots=batch, live=1) <= share * read
    ]
    return max(fits, default=1)


def _activations(model: Model, packed: int, batch: int) -> int:
    """An estimate: live tensors of one LLM layer and of one vision layer, logits."""
    llm, vision = model.llm, model.dims.vision
    width = 4 * llm.hidden + (2 * llm.heads * llm.head_dim + 2 * llm.intermediate) // model.tp
    step = packed * width * model.dtype.bytes
    logits = 3 * batch * llm.vocab * 4  # fp32, and what sampling copies
    patches = model.max_frames * vision.patches
    tower = patches * (4 * vision.hidden + vision.intermediate) * model.dtype.bytes
    features = model.max_frames * vision.tokens_per_frame * llm.hidden * (4 + model.dtype.bytes)
    return step + logits + tower + features


def _videos(model: Model, blocks: int, block: int) -> tuple[Videos, ...]:
    frames = [n for n in (8, 16, 32, 64, 128) if n < model.max_frames] + [model.max_frames]
    rates = (0.0,) if model.config.k == 0 else (0.0, model.config.k)
    videos = []
    for count in frames:
        for k in rates:
            visual = model.visual_tokens(count, k)
            tokens = visual + VIDEO_TEXT + VIDEO_ANSWER
            if tokens <= model.max_positions:
                videos.append(Videos(count, k, visual, blocks // -(-tokens // block)))
    return tuple(videos)
