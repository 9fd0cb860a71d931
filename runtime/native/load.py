"""A bundle's language model as an engine that is ready to run, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ...bundle.files import open_bundle
from ...bundle.loading import checked_parts
from ...bundle.paths import KERNELS, LLM, engine_directory
from ...bundle.record import EngineRecord, Installed, read_record
from ...core.config import DyCokeConfig
from ...core.errors import DyCokeError
from ..gpu import CUDA, architecture, find_gpu
from ..limits import RequestLimits
from ..scheduler import EngineLimits, Scheduler
from ..selection import StepTrace
from .cpu import cpu_runner
from .weights import load_weights

# A GPU's prefill is fast and its decode step short: larger chunks fill it.
GPU_PREFILL_CHUNK = 4096


def load_engine(
    bundle: Path,
    config: DyCokeConfig,
    *,
    kv_tokens: int,
    tokens_per_block: int,
    limits: EngineLimits | None = None,
    trace: Callable[[str, StepTrace], None] | None = None,
    device: str = "cpu",
) -> Scheduler:
    """The engine of `bundle`/llm: in fp32 on a CPU, in the bundle's dtype on `cuda`.

    kv_tokens: capacity of the pool, rounded up to blocks. Raises DyCokeError without a GPU that
    can run it, or for weights and a pool that its memory does not hold,
    and for weights that are not those of the manifest.
    """
    blocks = -(-kv_tokens // tokens_per_block)
    if device != CUDA:
        with checked_parts(bundle, f"{LLM}/"):
            llm, weights = load_weights(bundle / LLM, dtype=torch.float32)
        runner = cpu_runner(llm, weights, blocks, tokens_per_block, config)
        return Scheduler(runner, limits, trace)
    place = find_gpu()
    from .cuda import cuda_runner  # needs triton

    try:
        with checked_parts(bundle, f"{LLM}/", f"{KERNELS}/"):
            llm, weights = load_weights(bundle / LLM, device=place)
        limits = limits or EngineLimits()
        runner = cuda_runner(
            llm, weights, blocks, tokens_per_block, config, max_batch=limits.max_batch
        )
        return Scheduler(runner, limits, trace)
    except torch.OutOfMemoryError:
        raise DyCokeError(
            f"{bundle}: its weights and a KV pool of {kv_tokens} tokens do not fit in what is free "
            f"of the GPU's memory; run: dycoke build {bundle} --target {CUDA} --kv-fraction 0.5 "
            "(or less), or end what else runs there"
        ) from None


def native_record(bundle: Path, target: str) -> EngineRecord:
    """The record of `dycoke build --target cpu` or `cuda`.

    Raises DyCokeError where nothing was built, or from another bundle, or for a GPU of another
    architecture (its memory, so the size of the pool, is another one too), or for engines that the
    native backend does not run.
    """
    here = Installed(sm=architecture(find_gpu())) if target == CUDA else None
    record = read_record(
        engine_directory(bundle, target), open_bundle(bundle), bundle, installed=here
    )
    if record.backend != "native":
        raise DyCokeError(
            f"--target {target} is built for TensorRT-LLM, which runs in a server; run: "
            f"dycoke serve {bundle} --target {target}"
        )
    return record


def limits_of(record: EngineRecord, requests: RequestLimits | None = None) -> EngineLimits:
    """requests: of a server; none wait so long in one process that this would matter."""
    limits = EngineLimits(max_batch=record.max_batch)
    if record.target == CUDA:
        limits = replace(limits, prefill_chunk=GPU_PREFILL_CHUNK)
    if requests is not None:
        limits = replace(
            limits,
            max_queue=requests.max_queue,
            wait_seconds=requests.max_wait_seconds,
            answer_seconds=requests.max_answer_seconds,
        )
    return limits


def load_built_engine(
    bundle: Path, build: str = "cpu", requests: RequestLimits | None = None
) -> Scheduler:
    """The engine as `dycoke build --target build` recorded it; raises what `native_record` does."""
    record = native_record(bundle, build)
    return load_engine(
        bundle,
        open_bundle(bundle).config,
        kv_tokens=record.kv_tokens,
        tokens_per_block=record.tokens_per_block,
        limits=limits_of(record, requests),
        device=record.target,
    )
