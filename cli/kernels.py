"""`dycoke kernels`: device images of a bundle's kernels, compiled without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.extras import require
from .options import Bundle


def kernels(
    bundle: Bundle,
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory to write.")],
    target: Annotated[
        str,
        typer.Option("--target", help="sm_80, sm_86, sm_89, sm_90, sm_100, ptx; or all."),
    ] = "all",
    tokens_per_block: Annotated[
        str, typer.Option("--tokens-per-block", help="KV block sizes: of 16, 32, 64, 128.")
    ] = "32,64",
) -> None:
    """Compile the kernels that a bundle's engines need: cubins, PTX 8.0 and their manifest."""
    require("triton", extra="kernels")
    from ..bundle.atomic import atomic_directory
    from ..bundle.files import open_bundle
    from ..core.errors import DyCokeError
    from ..export.kernel_images import export_kernels

    try:
        blocks = [int(size) for size in tokens_per_block.split(",")]
    except ValueError:
        raise DyCokeError(
            f"--tokens-per-block {tokens_per_block!r} is not allowed; "
            "allowed: 16, 32, 64, 128, several separated by commas"
        ) from None
    llm = open_bundle(bundle).llm
    with atomic_directory(output) as work:
        images = export_kernels(llm, work, target.split(","), blocks)["images"]
    size = sum(image["size"] for image in images)
    typer.echo(f"{output}: {len(images)} images, {size / 1e3:,.0f} kB")
