"""All checks of a bundle, in order of cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..bundle.files import open_bundle
from ..bundle.paths import engine_directory
from ..core.errors import DyCokeError
from ..runtime.vision import RTX, TENSORRT
from .check import Check


def verify_bundle(
    bundle: Path, source: Path | None = None, vision_tower: Path | None = None
) -> Iterator[Check]:
    """Yields checks as they finish: every byte's hash, then, with the source model's directory,
    the vision graph layer by layer and the LLM's logits.

    vision_tower: of a source that has no tower, as it was exported with. Raises DyCokeError for a
    broken bundle, or a source other than the bundle's.
    """
    manifest = open_bundle(bundle, hashes=True)
    yield Check("sizes and hashes", True, len(manifest.parts), len(manifest.parts), "files")
    if source is None:
        return
    from ..export.checkpoint import open_checkpoint
    from .llm import check_llm
    from .source import load_source
    from .vision import check_vision

    checkpoint = open_checkpoint(source, vision_tower)
    revision = checkpoint.revision
    if revision != manifest.source.revision:
        raise DyCokeError(
            f"{source} is revision {revision[:12]}, {bundle} was exported from "
            f"{manifest.source.revision[:12]}; give that directory, or export again"
        )
    original = load_source(checkpoint, vision_tower)
    yield from check_vision(bundle, manifest, original)
    yield from check_llm(bundle, manifest, original.model)


def verify_engines(bundle: Path, target: str, vision: str = TENSORRT) -> Iterator[Check]:
    """Yields checks of what `dycoke build --target` made: every byte, then the vision engine
    against ONNX Runtime on the GPU. vision: TENSORRT, the plan of that build, or RTX.

    Raises DyCokeError for engines that do not fit this bundle or this machine.
    """
    from ..bundle.record import read_record
    from ..bundle.vision_record import read_vision_record
    from ..engines.tensorrt import require_tensorrt
    from ..runtime.installed import installed
    from ..runtime.vision import load_vision
    from .vision_plan import check_vision_engine

    manifest, directory = open_bundle(bundle), engine_directory(bundle, target)
    record = read_record(directory, manifest, bundle, installed=installed(), hashes=True)
    yield Check("engine files", True, len(record.files), len(record.files), "files")
    if record.backend == "trtllm":
        require_tensorrt(llm=False)
    if vision == RTX:
        files = read_vision_record(bundle, manifest, hashes=True).files
        yield Check("engine of TensorRT for RTX", True, len(files), len(files), "files")
    if vision == RTX or record.backend == "trtllm":
        yield from check_vision_engine(load_vision(bundle, target, kind=vision), bundle, manifest)
