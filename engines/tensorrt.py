"""A bundle's engines for a GPU: vision plan, LLM engine, plugin library, and their record.

    engines/<target>/  vision_ttm.plan  llm/{config.json, rank0.engine, ...}
                       libdycoke_plugins.so  record.json

The directory appears when everything is there; one of an earlier build is replaced then.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from ..bundle.atomic import atomic_directory
from ..bundle.files import describe_parts, open_bundle
from ..bundle.manifest import Manifest
from ..bundle.paths import LLM_ENGINE, RECORD, engine_directory
from ..bundle.record import EngineRecord, write_record
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from ..runtime.installed import CONTAINER
from ..runtime.nvidia_smi import visible_gpus
from ..runtime.tensorrt_library import TENSORRT, version_of
from ..runtime.trtllm.plugin import LIBRARY, PLUGIN_ABI
from .build_plan import BuildPlan, plan_build
from .llm_engine import build_llm_engine, check_kernels
from .model import model_of_bundle, model_of_preset
from .plan_report import PlanReport
from .plugin_interfaces import V3
from .plugin_library import plugin_library
from .refusals import refuse
from .target_gpus import find_target_gpu
from .targets import Target
from .vision_plan import TIMING_CACHE, build_vision_plan

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
    target = engine_directory(bundle, plan.target)
    engines = target.parent
    with atomic_directory(target, replace=True) as work:
        cache = engines / f"sm_{plan.sm}.{TIMING_CACHE}"
        build_vision_plan(bundle, manifest, work, cache)
        scratch = Path(tempfile.mkdtemp(prefix="dycoke-build-"))
        llm_cache = engines / f"sm_{plan.sm}.llm.{TIMING_CACHE}"
        build_llm_engine(
            bundle, manifest, plan, work / LLM_ENGINE, llm_cache, library, scratch / LOG
        )
        shutil.rmtree(scratch)
        if library is not None:
            shutil.copy2(library, work / LIBRARY)
        write_record(
            work, engine_record(work, manifest, plan, tensorrt, tensorrt_llm, library is not None)
        )
    return target / RECORD


def check_buildable(bundle: Path, manifest: Manifest, plan: BuildPlan) -> None:
    """Raises DyCokeError for what would fail after hours, or only while serving."""
    if manifest.llm.dtype == Dtype.FP32:
        raise DyCokeError(
            f"{bundle} is float32: TensorRT-LLM's paged attention runs 16-bit floats; export with "
            "--dtype bfloat16 or float16"
        )
    if manifest.config.p > 0:
        refuse(manifest.config.to_dict(), where=str(bundle))
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
        bundle_hash=manifest.identity,
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
        files=describe_parts(directory),
    )


def require_tensorrt(*, llm: bool) -> tuple[str, str | None]:
    """Versions of TensorRT and, with `llm`, of TensorRT-LLM.

    Raises DyCokeError that names what is missing and the container that has it.
    """
    tensorrt, tensorrt_llm = TENSORRT.version, version_of("tensorrt-llm")
    versions = {"tensorrt": tensorrt, "polygraphy": version_of("polygraphy")}
    if llm:
        versions["tensorrt_llm"] = tensorrt_llm
    if missing := [name for name, number in versions.items() if number is None]:
        raise DyCokeError(
            f"{', '.join(missing)} not installed, so no engine can be built here; build in "
            f"{CONTAINER} (docs/tensorrt.md), or see the plan with --dry-run"
        )
    assert tensorrt is not None
    return tensorrt, tensorrt_llm


def _build(
    bundle: Path | None,
    names: Sequence[str],
    *,
    dry_run: bool = False,
    model: str | None = None,
    tp: int | None = None,
    max_frames: int | None = None,
    plugin: Path | None = None,
    tokens_per_block: int = 32,
    max_batch: int | None = None,
    profile: str | None = None,
    plugin_interface: str = V3,
    kv_fraction: float = 0.9,
) -> str | PlanReport:
    """model, with tp (default 1) and max_frames (64): the preset that is planned for instead of a
    bundle; the others as in plan_build and build_engines."""
    if dry_run and plugin is not None:
        raise DyCokeError(f"--plugin {plugin} has no effect with --dry-run")
    if model is not None and not dry_run:
        raise DyCokeError("--model is for --dry-run; export the checkpoint, then build the bundle")
    gpu = find_target_gpu(names[0])
    if bundle is not None:
        if (tp, max_frames) != (None, None):
            raise DyCokeError("--tp and --max-frames are for --model; a bundle has its own")
        sized = model_of_bundle(bundle)
    else:
        assert model is not None
        frames = 64 if max_frames is None else max_frames
        ranks = 1 if tp is None else tp
        sized = model_of_preset(model, tp=ranks, max_frames=frames, config=DyCokeConfig.tuned())
    plan = plan_build(
        sized,
        gpu,
        tokens_per_block=tokens_per_block,
        max_batch=max_batch,
        profile=profile,
        plugin_interface=plugin_interface,
        kv_fraction=kv_fraction,
    )
    if dry_run:
        return PlanReport(sized, gpu, plan)
    assert bundle is not None
    return f"{build_engines(bundle, plan, plugin)} written"


TARGET = Target(
    _build,
    takes=_build,
    instead={"kv_tokens": "use --kv-fraction", "strip_weights": "it is for --vision rtx"},
)
