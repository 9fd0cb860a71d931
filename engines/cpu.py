"""The target `cpu`: nothing is compiled, so a build loads the parts, tries them, and records it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from ..bundle.files import open_bundle
from ..bundle.paths import VISION_GRAPH, engine_directory
from ..bundle.record import EngineRecord, write_record
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from ..core.extras import require
from ..runtime.vision import load_vision
from .targets import Target


def build_cpu(
    bundle: Path, *, kv_tokens: int = 16_384, tokens_per_block: int = 16, max_batch: int = 16
) -> Path:
    """Runs the vision graph once on blank frames and writes engines/cpu/record.json.

    Raises DyCokeError for options out of range, a bundle that CPUs cannot run, or a graph whose
    output is not what the manifest says.
    """
    manifest = open_bundle(bundle)
    most = 128
    if tokens_per_block < 1 or tokens_per_block > most or kv_tokens < tokens_per_block:
        raise DyCokeError(
            f"--tokens-per-block {tokens_per_block} --kv-tokens {kv_tokens} is not allowed; "
            f"allowed: blocks of 1 to {most} tokens, a pool of at least one block"
        )
    if max_batch < 1:
        raise DyCokeError(f"--max-batch {max_batch} is not allowed; allowed: an integer >= 1")
    if manifest.llm.tp != 1:
        raise DyCokeError(
            f"{bundle} has TP={manifest.llm.tp}, a CPU runs one rank: export with --tp 1"
        )
    if manifest.vision.dtype == Dtype.BF16:
        raise DyCokeError(
            f"{bundle}: ONNX Runtime on a CPU cannot run a bfloat16 graph: export with "
            "--dtype float32"
        )
    require("onnxruntime", extra="cpu")
    side = manifest.vision.image_size
    blank = torch.zeros(1, 4, 3, side, side, dtype=torch.uint8)
    shape = tuple(load_vision(bundle, "cpu")(blank).shape)
    expected = (1, manifest.visual_tokens(4), manifest.llm.hidden)
    if shape != expected:
        raise DyCokeError(
            f"{bundle / VISION_GRAPH} gives {shape} for 4 frames, the manifest says {expected}; "
            "export again"
        )
    record = EngineRecord(
        target="cpu",
        bundle_hash=manifest.identity,
        backend="native",
        tokens_per_block=tokens_per_block,
        kv_tokens=kv_tokens,
        max_batch=max_batch,
        versions={name: version(name) for name in ("dycoke-trt", "onnxruntime", "torch")},
    )
    return write_record(engine_directory(bundle, "cpu"), record)


def _build(bundle: Path, _names: Sequence[str], **options: int) -> str:
    return f"{build_cpu(bundle, **options)} written"


TARGET = Target(
    _build,
    takes=build_cpu,
    nature=", which compiles nothing",
    instead={"kv_fraction": "use --kv-tokens", "dry_run": "leave it out and give BUNDLE"},
)
