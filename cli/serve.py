"""`dycoke serve`: a bundle behind a Triton server on this machine, until Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..runtime.limits import RequestLimits
from ..runtime.video.limits import VideoLimits
from .limits import limit_options
from .options import BuiltTarget, Bundle, VisionCudaGraph, VisionStep, refuse_idle

if TYPE_CHECKING:
    from ..triton_repo.launcher import RunningServer
    from ..triton_repo.server_log import LoadEvent
    from ..triton_repo.tritonserver import TritonServer


@limit_options(VideoLimits, "videos")
@limit_options(RequestLimits, "requests")
def serve(
    bundle: Bundle,
    extra: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTION...]", help="Options passed on to tritonserver."),
    ] = None,
    target: BuiltTarget = "cpu",
    http_port: Annotated[int, typer.Option("--http-port", help="0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option("--grpc-port", help="0 takes a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option("--metrics-port", help="0 takes a free one.")] = 8002,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every one.")
    ] = "127.0.0.1",
    repository: Annotated[
        Path | None,
        typer.Option("--repository", help="Write the model repository there and keep it."),
    ] = None,
    tritonserver: Annotated[
        Path | None, typer.Option("--tritonserver", help="The server's binary.")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", help="CPU threads of a model; 0 takes all cores.")
    ] = 0,
    start_timeout: Annotated[
        float, typer.Option("--start-timeout", help="Seconds to load the models.")
    ] = 600.0,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", help="The server's output; default: a temporary.")
    ] = None,
    log_verbose: Annotated[int, typer.Option("--log-verbose", help="Triton's log level.")] = 0,
    counters: Annotated[
        str, typer.Option("--counters", help="Engines: file that the plugins count decisions in.")
    ] = "",
    vision: VisionStep = "auto",
    vision_cuda_graph: VisionCudaGraph = False,
    llm: Annotated[
        str | None,
        typer.Option(
            "--llm",
            help="Engines: tensorrtllm (Triton's C++ backend), executor (a Python model), or auto.",
            show_default="auto",
        ),
    ] = None,
    plugin: Annotated[
        Path | None,
        typer.Option("--plugin", help="Engines: another plugin library than the one beside them."),
    ] = None,
    opened: Annotated[
        str,
        typer.Option(
            "--open",
            help="What clients may use beside asking: shared-memory, model-repository, logging, "
            "trace, http (beyond loopback, where the server's version has holes in it), or all.",
        ),
    ] = "",
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds that requests in flight get at the end.")
    ] = 10.0,
    restart: Annotated[
        int, typer.Option("--restart", help="How often a server that failed is started again.")
    ] = 0,
    hang_timeout: Annotated[
        float,
        typer.Option("--hang-timeout", help="Seconds without a sign of life; 0 does not look."),
    ] = 20.0,
    *,
    requests: RequestLimits,
    videos: VideoLimits,
) -> None:
    """Serve a bundle with Triton: writes the model repository, starts the server, watches it."""
    from ..core.errors import DyCokeError
    from ..engines.targets import check_name
    from ..triton_repo.access import parse_open
    from ..triton_repo.launcher import EXIT_TIMEOUT, serving
    from ..triton_repo.ports import choose_ports
    from ..triton_repo.repository import parse_version, write_repository
    from ..triton_repo.supervise import supervise
    from ..triton_repo.tritonserver import Ports, find_tritonserver
    from ..triton_repo.vision_config import PLAN_BACKEND, choose_vision
    from ..triton_repo.weaknesses import advice

    check_name(target)
    if threads < 0:
        raise DyCokeError(f"--threads {threads} is not allowed; allowed: an integer >= 0")
    numbers = {"--grace": grace, "--restart": restart, "--hang-timeout": hang_timeout}
    for option, value in numbers.items():
        if not value >= 0:
            raise DyCokeError(f"{option} {value} is not allowed; allowed: a number >= 0")
    categories = parse_open(opened)
    ports = choose_ports(Ports(http_port, grpc_port, metrics_port, host))
    triton = find_tritonserver(tritonserver)
    engines = _Engines.of(bundle, target, counters, llm, plugin, triton)
    chosen = choose_vision(vision, target, native=engines.native)
    has_plan_backend = triton.backend_library(PLAN_BACKEND).is_file()
    _check_vision(bundle, chosen, plan_backend=has_plan_backend)
    with _terminated_like_interrupted(), _folder(repository) as folder:
        try:
            write_repository(
                bundle,
                folder,
                triton_version=triton.version,
                build=target,
                llm=engines.llm,
                vision=chosen,
                vision_cuda_graph=vision_cuda_graph,
                plan_backend=has_plan_backend,
                threads=threads if target == "cpu" else 0,
                limits=videos,
                requests=requests,
            )
            _say(f"tritonserver {triton.version} ({triton.source}), models in {folder}")
            if known := advice(parse_version(triton.version)):
                _say(f"[yellow]{known}[/]; docs/serving.md")

            def start() -> AbstractContextManager[RunningServer]:
                return serving(
                    folder,
                    tritonserver=triton,
                    ports=ports,
                    environment={
                        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
                        **engines.environment,
                    },
                    log_file=log_file,
                    log_verbose=log_verbose,
                    start_timeout=start_timeout,
                    on_event=_show,
                    extra=[*engines.options, *(extra or [])],
                    world_size=engines.world_size,
                    opened=categories,
                    grace=grace,
                    # Of the backend in C++ nothing is known here: the server itself waits.
                    exit_timeout=EXIT_TIMEOUT + (grace if engines.in_cpp else 0),
                    hang_seconds=hang_timeout,
                    disposable=[] if repository else [folder],
                    loading=engines.checked,
                )

            def on_ready(server: RunningServer) -> None:
                typer.echo(
                    f"ready: grpc {server.grpc}, http {server.http}, metrics {server.metrics}; "
                    f'try: dycoke ask --server {server.grpc} --video FILE "QUESTION"'
                )

            supervise(start, restarts=restart, on_ready=on_ready, say=_say)
        except KeyboardInterrupt:
            _say("stopped")


@dataclass(frozen=True)
class _Engines:
    """What TensorRT engines add to the start of a server; nothing for the native backend."""

    environment: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    world_size: int = 1
    llm: str = "tensorrtllm"
    in_cpp: bool = False  # runs in Triton's C++ backend
    checked: Callable[[], AbstractContextManager[None]] = nullcontext  # their files' hashes
    native: bool = True

    @classmethod
    def of(
        cls,
        bundle: Path,
        target: str,
        counters: str,
        llm: str | None,
        plugin: Path | None,
        server: TritonServer,
    ) -> _Engines:
        """Raises DyCokeError, in under a second, for engines that do not fit this machine."""
        import shutil

        from ..bundle.files import open_bundle
        from ..bundle.loading import checked_while_loading
        from ..bundle.paths import RECORD, engine_directory
        from ..bundle.record import read_record
        from ..runtime.installed import installed
        from ..triton_repo.trtllm import CPP_BACKEND
        from ..triton_repo.trtllm_launch import (
            choose_llm,
            server_environment,
            server_options,
            shm_advice,
        )

        manifest, folder = open_bundle(bundle), engine_directory(bundle, target)
        if target == "cuda":
            from ..runtime.native.load import native_record

            record = native_record(bundle, target)  # also asks for the GPU
        else:
            record = read_record(folder, manifest, bundle)
        if record.backend == "native":
            refuse_idle(f"with --target {target}", counters=counters, llm=llm, plugin=plugin)
            return cls()
        again = f"run: dycoke build {bundle} --target {target}"
        here = installed()
        read_record(folder, manifest, bundle, installed=here)
        chosen = choose_llm(llm or "auto", server, has_bindings=here.tensorrt_llm is not None)
        _say(f"tensorrt_llm runs on: {chosen}")
        if advice := shm_advice(manifest, record, chosen, shutil.disk_usage("/dev/shm").total):
            _say(advice)
        return cls(
            server_environment(folder, record, counters, plugin),
            server_options(manifest, record),
            manifest.llm.tp,
            chosen,
            chosen == CPP_BACKEND,
            partial(checked_while_loading, folder, record.files, RECORD, again),
            native=False,
        )


def _check_vision(bundle: Path, chosen: str, *, plan_backend: bool) -> None:
    """Says what runs the vision step, and refuses an engine that does not fit this machine."""
    from ..bundle.files import open_bundle
    from ..bundle.vision_record import read_vision_record
    from ..runtime.nvidia_smi import visible_gpus
    from ..runtime.tensorrt_library import TENSORRT_RTX
    from ..runtime.vision import RTX, TENSORRT

    if chosen == TENSORRT:
        by = "Triton's backend" if plan_backend else "a Python model"
        _say(f"vision_ttm runs on: TensorRT, {by}")
    if chosen == RTX:
        version, gpus = TENSORRT_RTX.version, visible_gpus()
        sm = gpus[0].sm if gpus else None
        read_vision_record(bundle, open_bundle(bundle), version=version, sm=sm)
        _say(f"vision_ttm runs on: {TENSORRT_RTX.title} {version}")


def _show(event: LoadEvent) -> None:
    colour = {"ready": "green", "failed": "bold red"}.get(event.state, "dim")
    _say(f"  {event.model:<16} [{colour}]{event.state}[/]")


def _say(text: str) -> None:
    """Progress goes to stderr, so that stdout holds the ready line alone."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


@contextmanager
def _folder(repository: Path | None) -> Iterator[Path]:
    if repository is not None:
        yield repository
        return
    from ..bundle.writing import temporary_folder

    with temporary_folder("dycoke-models-") as folder:
        yield folder


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does; a second one kills the server at once."""

    def interrupt(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
