"""`dycoke repo`: the Triton model repository of a bundle, for a server started elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..runtime.limits import RequestLimits
from ..runtime.video.limits import VideoLimits
from .limits import limit_options
from .options import BuiltTarget, Bundle, VisionCudaGraph, VisionStep


@limit_options(VideoLimits, "videos")
@limit_options(RequestLimits, "requests")
def repo(
    bundle: Bundle,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Repository to write.", show_default=False)
    ],
    target: BuiltTarget = "cpu",
    triton_version: Annotated[
        str, typer.Option("--triton-version", help="Of the server that will load it.")
    ] = "2.51.0",
    bundle_path: Annotated[
        Path | None,
        typer.Option("--bundle-path", help="Where that server sees the bundle, if elsewhere."),
    ] = None,
    llm: Annotated[
        str,
        typer.Option("--llm", help="Engines: tensorrtllm (Triton's C++ backend) or executor."),
    ] = "tensorrtllm",
    vision: VisionStep = "auto",
    vision_cuda_graph: VisionCudaGraph = False,
    threads: Annotated[
        int, typer.Option("--threads", help="CPU threads of the vision step; 0 takes all cores.")
    ] = 0,
    *,
    requests: RequestLimits,
    videos: VideoLimits,
) -> None:
    """Write the Triton model repository of a bundle, to be mounted into a container for example."""
    from ..core.errors import DyCokeError
    from ..engines.targets import check_name
    from ..triton_repo.repository import write_repository
    from ..triton_repo.trtllm import CPP_BACKEND, EXECUTOR

    check_name(target)
    if llm not in (CPP_BACKEND, EXECUTOR):
        raise DyCokeError(f"--llm {llm!r} is not allowed; allowed: {CPP_BACKEND}, {EXECUTOR}")
    if threads < 0:
        raise DyCokeError(f"--threads {threads} is not allowed; allowed: an integer >= 0")
    written = write_repository(
        bundle,
        output,
        bundle_path=bundle_path,
        triton_version=triton_version,
        build=target,
        llm=llm,
        vision=vision,
        vision_cuda_graph=vision_cuda_graph,
        threads=threads,
        limits=videos,
        requests=requests,
    )
    typer.echo(f"{written}: start it with: tritonserver --model-repository={written.resolve()}")
