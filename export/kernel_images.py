"""Kernel images for an engine of a bundle: a container that builds or serves never compiles."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..bundle.manifest import Llm
from ..core.errors import DyCokeError
from ..core.pool import FAST_BLOCKS

DEFAULT_BLOCKS = (32, 64)
ALL = "all"


def check_kernel_targets(targets: Iterable[str]) -> tuple[str, ...]:
    """The targets that names stand for; DyCokeError for an unknown one."""
    from ..kernels.aot import TARGETS, check_targets

    names = tuple(targets)
    return check_targets(TARGETS if ALL in names else names)


def export_kernels(
    llm: Llm,
    directory: Path,
    targets: Iterable[str] = (ALL,),
    blocks: Iterable[int] = DEFAULT_BLOCKS,
) -> dict[str, Any]:
    """Writes images and manifest.json into `directory`; returns the manifest.

    targets: names of kernels/aot.py's TARGETS, or `all`. blocks: tokens per KV block that engines
    may be built with. Raises DyCokeError for an unknown target or block size.
    """
    from ..kernels.aot import write_images
    from ..kernels.images import KernelShape, plugin_variants

    chosen = check_kernel_targets(targets)
    sizes = tuple(sorted(set(blocks)))
    for size in sizes:
        if size not in FAST_BLOCKS:
            raise DyCokeError(
                f"--tokens-per-block {size} is not allowed; "
                f"allowed: {', '.join(map(str, FAST_BLOCKS))}"
            )
    shape = KernelShape(
        heads=llm.heads // llm.tp,
        kv_heads=max(1, llm.kv_heads // llm.tp),
        head_dim=llm.head_dim,
        dtype=llm.dtype,
        ranks=llm.tp,
    )
    return write_images(directory, shape, plugin_variants(shape, sizes), chosen)
