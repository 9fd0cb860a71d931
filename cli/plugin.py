"""`dycoke plugin build`: the TensorRT plugin, compiled on the spot or for a release."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The TensorRT plugin of an engine's dynamic pruning.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Keeps `dycoke plugin COMMAND` the only form."""


@app.command()
def build(
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory to write.")] = Path(
        "build/plugin"
    ),
    tensorrt_include: Annotated[
        Path | None,
        typer.Option(
            "--tensorrt-include", help="Folder with NvInferRuntime.h.", show_default=False
        ),
    ] = None,
    cuda_include: Annotated[
        Path | None,
        typer.Option("--cuda-include", help="Folder with cuda.h.", show_default=False),
    ] = None,
    release: Annotated[
        bool,
        typer.Option("--release", help="For any Linux from glibc 2.17 on, with zig (ziglang)."),
    ] = False,
) -> None:
    """Compile the plugin with g++: needs headers of TensorRT and CUDA, no library, no GPU."""
    if release:
        from ..engines.plugin_release import build_release

        typer.echo(build_release(output, tensorrt_include, cuda_include))
        return
    from ..engines.plugin_build import build_plugin

    typer.echo(build_plugin(output, tensorrt_include, cuda_include)[0])
