"""The vision step by TensorRT for RTX: one engine for several GPUs, compiled on any machine.

The library parses vision_ttm.onnx and compiles it ahead of time for the compute capabilities that
are named, without a GPU; on the GPU it compiles further when the engine is first run, and keeps
that in a cache. It knows GeForce and RTX cards and the data centre's Ampere and Ada; no Hopper, no
B200.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..bundle.atomic import atomic_directory
from ..bundle.files import describe_parts, open_bundle
from ..bundle.paths import RECORD, VISION_GRAPH, VISION_PLAN, rtx_directory
from ..bundle.record import write_record
from ..bundle.vision_record import VisionRecord
from ..core.errors import DyCokeError
from ..runtime.nvidia_smi import visible_gpus
from ..runtime.tensorrt_library import TENSORRT_RTX, LoadedLibrary
from .rtx_compiler import check_io, compile_graph, known_capabilities
from .target_gpus import GPU_NAMES, TargetGpu, find_target_gpu
from .targets import Target
from .vision_plan import profile_ranges


def build_rtx_engine(bundle: Path, targets: Sequence[str], *, strip_weights: bool = False) -> Path:
    """Writes engines/rtx/{vision_ttm.plan, record.json} of a bundle; returns the record's path.

    targets: names of GPUs (engines/target_gpus.py), all served by the one engine. strip_weights:
    the engine takes its weights from the bundle when it is loaded.
    Raises DyCokeError for a target that the compiler does not know, a graph that it refuses, and an
    engine that is not what the graph says.
    """
    manifest = open_bundle(bundle)
    library = TENSORRT_RTX.load()
    sms = compute_capabilities(library, [find_target_gpu(name) for name in targets])
    if strip_weights and not visible_gpus():
        raise DyCokeError(
            f"--strip-weights: {library} compiles an engine without weights only where a GPU is; "
            "build there, or leave it out"
        )
    vision = manifest.vision
    ranges = profile_ranges(vision.image_size, vision.max_frames)
    engine = compile_graph(library, bundle / VISION_GRAPH, sms, ranges, strip_weights=strip_weights)
    check_io(engine, manifest, f"{bundle / VISION_GRAPH}: the engine of {library}")
    directory = rtx_directory(bundle)
    with atomic_directory(directory, replace=True) as work:
        (work / VISION_PLAN).write_bytes(engine.plan)
        record = VisionRecord(
            bundle_hash=manifest.identity,
            library=library.library.title,
            version=library.version,
            targets=list(dict.fromkeys(targets)),
            sms=sms,
            dtype=vision.dtype,
            profiles=[(list(r.least), list(r.best), list(r.most)) for r in ranges],
            weights="stripped" if strip_weights else "included",
            activations=engine.activations,
            checked_layers=len(engine.layers),
            build_seconds=round(engine.seconds, 2),
            files=describe_parts(work),
        )
        write_record(work, record)
    return directory / RECORD


def compute_capabilities(library: LoadedLibrary, targets: Sequence[TargetGpu]) -> list[int]:
    """What the engine is compiled for, such as [89, 120], sorted.

    Raises DyCokeError for a target that the library does not know, with what serves it instead.
    """
    known = known_capabilities(library)
    for target in targets:
        if target.sm not in known:
            served = [name for name in GPU_NAMES if find_target_gpu(name).sm in known]
            raise DyCokeError(
                f"--target {target.name} is sm_{target.sm}, {library} compiles for "
                f"{', '.join(f'sm_{sm}' for sm in known)} ({', '.join(served)}); build with "
                "--vision tensorrt on that GPU, or serve it with --target cuda"
            )
    return sorted({target.sm for target in targets})


def _build(bundle: Path, names: Sequence[str], *, strip_weights: bool = False) -> str:
    path = build_rtx_engine(bundle, names, strip_weights=strip_weights)
    record = VisionRecord.model_validate_json(path.read_text())
    size = sum(part.size for part in record.files.values())
    return (
        f"{path} written: {record.library} {record.version}, "
        f"{', '.join(f'sm_{sm}' for sm in record.sms)}, {size / 1e6:.0f} MB, {record.dtype}, "
        f"{record.checked_layers} layers; built in {record.build_seconds:.1f} s, not run"
    )


TARGET = Target(_build, takes=_build, nature=", which builds no LLM engine", several=True)
