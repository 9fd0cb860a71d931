"""A bundle's engines for a GPU: vision plan, LLM engine, plugin library, and their record.

    engines/<target>/  vision_ttm.plan  llm/{config.json, rank0.engine, ...}
                       libdycoke_plugins.so  record.json

The directory appears when everything is there; one of an earlier build is replaced then.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from ..bundle.files import bundle_hash, open_bundle
from ..bundle.manifest import Manifest
from ..bundle.record import EngineRecord, engine_files, write_record
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from .build_plan import BuildPlan
from .installed import plugin_library, require_tensorrt
from .llm_engine import build_llm_engine, check_kernels
from .plugin_nodes import LIBRARY, PLUGIN_ABI
from .this_gpu import visible_gpus
from .vision_plan import TIMING_CACHE, build_vision_plan

LLM_DIRECTORY = "llm"
LOG = "trtllm-build.log"


def build_engines(bundle: Path, plan: BuildPlan, plugin: Path | None = None) -> Path:
    """Builds on this machine's GPU; returns the record's path.

    plugin: the library, by default the one that `dycoke plugin build` made.

    Raises DyCokeError for what is missing or cannot be, before anything is built: TensorRT,
    TensorRT-LLM, the plugin library, a GPU of the target's architecture, kernel images, a dtype
    that attention cannot run.
    """
    manifest = open_bundle(bundle)
    tensorrt, tensorrt_llm = require_tensorrt(llm=True)
    check_buildable(bundle, manifest, plan)
    if plugin is not None and manifest.config.p == 0:
        raise DyCokeError(f"--plugin {plugin} has no effect: no plugins with --p 0")
    library = plugin_library(plugin) if manifest.config.p > 0 else None
    engines = bundle / "engines"
    engines.mkdir(parents=True, exist_ok=True)
    target = engines / plan.target
    work = Path(tempfile.mkdtemp(prefix=f".{plan.target}.", dir=engines))
    try:
        cache = engines / f"sm_{plan.sm}.{TIMING_CACHE}"
        build_vision_plan(bundle, manifest, work, cache)
        scratch = Path(tempfile.mkdtemp(prefix="dycoke-build-"))
        llm_cache = engines / f"sm_{plan.sm}.llm.{TIMING_CACHE}"
        build_llm_engine(
            bundle, manifest, plan, work / LLM_DIRECTORY, llm_cache, library, scratch / LOG
        )
        shutil.rmtree(scratch)
        if library is not None:
            shutil.copy2(library, work / LIBRARY)
        write_record(
            work, engine_record(work, manifest, plan, tensorrt, tensorrt_llm, library is not None)
        )
        work.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / "record.json"


def check_buildable(bundle: Path, manifest: Manifest, plan: BuildPlan) -> None:
    """Raises DyCokeError for what would fail after hours, or only while serving."""
    if manifest.llm.dtype == Dtype.FP32:
        raise DyCokeError(
            f"{bundle} is float32: TensorRT-LLM's paged attention runs 16-bit floats; export with "
            "--dtype bfloat16 or float16"
        )
    gpus = visible_gpus()
    if not gpus:
        raise DyCokeError("nvidia-smi lists no GPU here; engines are built on the GPU they run on")
    if gpus[0].sm != plan.sm:
        raise DyCokeError(
            f"--target {plan.target} is sm_{plan.sm}, this machine's {gpus[0].name} is "
            f"sm_{gpus[0].sm}; build on the target, or for --target this-gpu"
        )
    check_kernels(bundle, manifest, plan)


def engine_record(
    directory: Path,
    manifest: Manifest,
    plan: BuildPlan,
    tensorrt: str,
    tensorrt_llm: str | None,
    pruned: bool,
) -> EngineRecord:
    """The record of an engine directory that is complete but for it."""
    plan_fields = {key: value for key, value in asdict(plan).items() if key != "videos"}
    return EngineRecord(
        target=plan.target,
        bundle_hash=bundle_hash(manifest),
        backend="trtllm",
        tokens_per_block=plan.tokens_per_block,
        kv_tokens=plan.kv_tokens,
        max_batch=plan.max_batch,
        versions={"dycoke-trt": version("dycoke-trt")},
        options=plan_fields,
        sm=plan.sm,
        tensorrt=tensorrt,
        tensorrt_llm=tensorrt_llm,
        plugin_abi=PLUGIN_ABI if pruned else None,
        files=engine_files(directory),
    )
