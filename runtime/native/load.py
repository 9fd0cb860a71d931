"""A bundle's language model as an engine that is ready to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ...bundle.files import open_bundle
from ...bundle.record import read_record
from ...core.config import DyCokeConfig
from .engine import EngineLimits, NativeEngine
from .model import Qwen2
from .pruning import StepTrace
from .weights import load_weights


def load_engine(
    bundle: Path,
    config: DyCokeConfig,
    *,
    kv_tokens: int,
    tokens_per_block: int,
    limits: EngineLimits | None = None,
    trace: Callable[[str, StepTrace], None] | None = None,
    device: str = "cpu",
) -> NativeEngine:
    """The engine of `bundle`/llm: in fp32 on a CPU, in the bundle's dtype on a GPU.

    kv_tokens: capacity of the pool, rounded up to blocks.
    """
    cpu = device == "cpu"
    llm, weights = load_weights(bundle / "llm", dtype=torch.float32 if cpu else None, device=device)
    model: type[Qwen2] = Qwen2
    if not cpu:
        from .device import DeviceQwen2  # needs triton

        model = DeviceQwen2
    blocks = -(-kv_tokens // tokens_per_block)
    return NativeEngine(model(llm, weights, blocks, tokens_per_block), config, limits, trace)


def load_built_engine(bundle: Path, build: str = "cpu") -> NativeEngine:
    """The engine as `dycoke build --target build` recorded it.

    Raises DyCokeError where nothing was built, or from another bundle.
    """
    manifest = open_bundle(bundle)
    record = read_record(bundle / "engines" / build, manifest, bundle)
    return load_engine(
        bundle,
        manifest.config,
        kv_tokens=record.kv_tokens,
        tokens_per_block=record.tokens_per_block,
        limits=EngineLimits(max_batch=record.max_batch),
    )
