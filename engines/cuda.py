"""The target `cuda`: the native backend on this machine's GPU.

Nothing is compiled ahead of time: kernels are, when they first run, into triton's own cache. So a
build sizes the KV pool for the GPU, runs both steps once, which fills that cache, and records it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..bundle.files import open_bundle
from ..bundle.manifest import Manifest
from ..bundle.paths import engine_directory
from ..bundle.record import EngineRecord, write_record
from ..core.errors import DyCokeError
from ..runtime.gpu import CUDA, architecture, find_gpu
from ..runtime.native.load import load_engine
from ..runtime.request import Event, Request
from ..runtime.vision import load_vision
from .build_plan import plan_build
from .model import model_of_bundle
from .target_gpus import TargetGpu
from .targets import Target

BLOCKS = (8, 16, 32, 64, 128)  # tokens per KV block that the kernels take


def build_cuda(
    bundle: Path,
    *,
    tokens_per_block: int = 32,
    max_batch: int | None = None,
    kv_tokens: int | None = None,
    kv_fraction: float = 0.9,
) -> Path:
    """Writes engines/cuda/record.json; returns its path.

    max_batch: default as many sequences as have room for a longest video each. kv_tokens: of the
    pool, default what fits, which is kv_fraction of what weights and activations leave.
    Raises DyCokeError without a GPU that can run the bundle, for options out of range, a model that
    does not fit, and a vision step whose output is not what the manifest says.
    """
    manifest = open_bundle(bundle)
    if manifest.llm.tp != 1:
        raise DyCokeError(
            f"{bundle} has TP={manifest.llm.tp}, the native backend runs one rank: export with "
            "--tp 1"
        )
    device = find_gpu()
    name, memory = _describe(device)
    plan = plan_build(
        model_of_bundle(bundle),
        TargetGpu(CUDA, architecture(device) or 0, memory, None),
        tokens_per_block=tokens_per_block,
        max_batch=max_batch,
        kv_fraction=kv_fraction,
        blocks=BLOCKS,
    )
    if kv_tokens is None:
        kv_tokens = plan.kv_tokens
    elif not tokens_per_block <= kv_tokens <= plan.kv_tokens:
        raise DyCokeError(
            f"--kv-tokens {kv_tokens} is not allowed; allowed on this GPU beside the weights: "
            f"{tokens_per_block} to {plan.kv_tokens}"
        )
    _try(bundle, manifest, tokens_per_block)
    record = EngineRecord(
        target=CUDA,
        bundle_hash=manifest.identity,
        backend="native",
        tokens_per_block=tokens_per_block,
        kv_tokens=kv_tokens,
        max_batch=plan.max_batch,
        versions={part: version(part) for part in ("dycoke-trt", "torch", "triton")},
        options={"gpu": name, "memory": int(memory)},
        sm=architecture(device),
    )
    return write_record(engine_directory(bundle, CUDA), record)


def _describe(device: torch.device) -> tuple[str, float]:
    """Name and bytes of memory; of the interpreter a small GPU's, as nothing depends on it."""
    if device.type != "cuda":
        return "Triton's interpreter", 8 * 2.0**30
    properties = torch.cuda.get_device_properties(device)
    return properties.name, float(properties.total_memory)


def _try(bundle: Path, manifest: Manifest, tokens_per_block: int) -> None:
    """The shortest video on blank frames through both steps, and two tokens of an answer."""
    side, visual = manifest.vision.image_size, manifest.visual_tokens(4)
    blank = torch.zeros(1, 4, 3, side, side, dtype=torch.uint8)
    embeddings = load_vision(bundle, CUDA)(blank)
    expected = (1, visual, manifest.llm.hidden)
    if embeddings.shape != expected or not embeddings.isfinite().all():
        raise DyCokeError(
            f"{bundle}: the vision step gives {tuple(embeddings.shape)} for 4 frames, the manifest "
            f"says {expected} of finite numbers; export again"
        )
    base = manifest.visual_token_base
    prompt = [0, *range(base, base + visual), 0]
    engine = load_engine(
        bundle,
        manifest.config,
        kv_tokens=len(prompt) + 2,
        tokens_per_block=tokens_per_block,
        device=CUDA,
    )
    events: list[Event] = []
    engine.submit(Request("try", prompt, 2, events.append, embeddings[0]))
    engine.run_until_idle()
    assert sum(len(event.tokens) for event in events) == 2


def _build(bundle: Path, _names: Sequence[str], **options: Any) -> str:
    path = build_cuda(bundle, **options)
    record = EngineRecord.model_validate_json(path.read_text())
    return (
        f"{path} written: {record.options['gpu']}, KV pool of {record.kv_tokens:,} tokens, "
        f"batches of up to {record.max_batch}"
    )


TARGET = Target(
    _build,
    takes=build_cuda,
    nature=", which compiles nothing ahead of time",
    instead={"dry_run": "leave it out and give BUNDLE"},
)
