"""Ahead-of-time images of kernels, made without a GPU: cubins per architecture, PTX for the rest.

`manifest.json` beside them says what a launcher needs to know: parameters in order, how many hidden
pointers follow them, threads, shared memory, grid, and each image's sha256. The same sources,
Triton release and options give the same bytes on every machine: no path or line number gets in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from . import MANIFEST
from .images import KernelShape, Variant
from .interpreter import INTERPRETED

SCHEMA_VERSION = 1
# cubins run on their own architecture (and 80 on 86 and 89); PTX 8.0 for sm_80 runs on anything
# newer, compiled by a driver of CUDA 12.0 or later.
TARGETS = {
    "sm_80": 80, "sm_86": 86, "sm_89": 89, "sm_90": 90, "sm_100": 100, "ptx": 80
}  # fmt: skip
PTX_VERSION = 80
_PTX_BYTES = {"u64": 8, "s64": 8, "b64": 8, "u32": 4, "s32": 4, "b32": 4, "f32": 4}


def check_targets(targets: Iterable[str]) -> tuple[str, ...]:
    """The targets in the order of TARGETS, each once; DyCokeError for an unknown one."""
    wanted = set(targets)
    for name in sorted(wanted - set(TARGETS)):
        raise DyCokeError(f"unknown kernel target {name!r}; allowed: {', '.join(TARGETS)}")
    if not wanted:
        raise DyCokeError(f"no kernel target given; allowed: {', '.join(TARGETS)}")
    return tuple(name for name in TARGETS if name in wanted)


def write_images(
    directory: Path, shape: KernelShape, variants: Iterable[Variant], targets: Iterable[str]
) -> dict[str, Any]:
    """Compiles every variant for every target into `directory`; returns the manifest written."""
    if INTERPRETED:
        raise DyCokeError("TRITON_INTERPRET=1 is set, so nothing can be compiled; unset it")
    chosen = check_targets(targets)
    directory.mkdir(parents=True, exist_ok=True)
    images = [
        _image(directory, variant, shape.dtype, target) for variant in variants for target in chosen
    ]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "triton": triton.__version__,
        "shape": asdict(shape),
        "images": images,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _image(directory: Path, variant: Variant, dtype: Dtype, target: str) -> dict[str, Any]:
    """Compiles one image and describes it."""
    compiled = compile_variant(variant, dtype, target)
    kind = "ptx" if target == "ptx" else "cubin"
    code = compiled.asm[kind]
    data = code.encode() if isinstance(code, str) else code
    path = directory / f"{variant.name}.{target}.{kind}"
    path.write_bytes(data)

    metadata = compiled.metadata
    parameters = variant.parameters(dtype)
    sizes = ptx_parameter_sizes(compiled.asm["ptx"])
    expected = [parameter.bytes for parameter in parameters]
    hidden = sizes[len(expected) :]
    # Hidden pointers are scratch memory: a launcher passes null, so nothing may lie behind them.
    plain = metadata.global_scratch_size == 0 and metadata.profile_scratch_size == 0
    if sizes[: len(expected)] != expected or set(hidden) - {8} or not plain:
        raise RuntimeError(f"{path.name}: parameters {sizes}, expected {expected} and null scratch")
    if metadata.num_ctas != 1 or metadata.launch_cooperative_grid or metadata.launch_pdl:
        raise RuntimeError(f"{path.name}: needs more than a plain launch")
    return {
        "name": variant.name,
        "target": target,
        "file": path.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "entry": metadata.name,
        "parameters": [asdict(p) | {"bytes": p.bytes} for p in parameters],
        "hidden_parameters": len(hidden),
        "warps": metadata.num_warps,
        "shared_bytes": metadata.shared,
        "grid": list(variant.grid),
        "constants": {name: int(value) for name, value in variant.constants.items()},
    }


def compile_variant(variant: Variant, dtype: Dtype, target: str) -> Any:
    """Triton's compiled kernel for `target`, from a cache that lasts for this call only."""
    signature = dict.fromkeys(variant.kernel.arg_names, "constexpr")
    attributes = {}
    for parameter in variant.parameters(dtype):
        signature[parameter.name] = parameter.type
        if parameter.aligned:
            place = variant.kernel.arg_names.index(parameter.name)
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=variant.kernel, signature=signature, constexprs=variant.constants, attrs=attributes
    )
    options: dict[str, Any] = {"num_warps": variant.warps, "num_stages": variant.stages}
    if target == "ptx":
        options["ptx_version"] = PTX_VERSION
    knobs = triton.knobs
    with TemporaryDirectory() as cache, knobs.compilation.scope(), knobs.cache.scope():
        knobs.cache.dir = cache
        knobs.compilation.disable_line_info = True
        gpu = GPUTarget("cuda", TARGETS[target], 32)
        return triton.compile(source, target=gpu, options=options)


def ptx_parameter_sizes(ptx: str) -> list[int]:
    """Bytes of each parameter of the entry point, hidden ones too, in order."""
    entry = ptx[ptx.index(".entry") :]
    return [_PTX_BYTES[kind] for kind in re.findall(r"\.param \.(\w+)", entry[: entry.index(")")])]
