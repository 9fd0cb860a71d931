"""An ONNX graph compiled by TensorRT for RTX, without a GPU; what came out, held against the graph.

Followed: NVIDIA's pages on ahead-of-time engines on a CPU and on compute capabilities, TensorRT for
RTX 1.6; what 1.7.1.116 does without a GPU was tried.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle.manifest import Manifest
from ..bundle.paths import FRAMES, VISUAL_EMBEDS
from ..core.errors import DyCokeError
from ..runtime.tensorrt_library import LoadedLibrary, Messages
from .engine_layers import BEGINNING, EngineLayer, Tensor, check_types, parse_io, parse_layers
from .vision_plan import ProfileRange


@dataclass(frozen=True)
class CompiledEngine:
    """plan: the serialised engine, a buffer. io: its tensors by name, (Input or Output, tensor)."""

    plan: Any
    layers: list[EngineLayer]
    io: dict[str, tuple[str, Tensor]]
    activations: int
    seconds: float


def known_capabilities(library: LoadedLibrary) -> list[int]:
    """Every compute capability that the installed compiler has a name for."""
    names = library.trt.ComputeCapability.__members__
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"SM(\d+)", name)))


def compile_graph(
    library: LoadedLibrary,
    graph: Path,
    sms: Sequence[int],
    ranges: Sequence[ProfileRange],
    *,
    strip_weights: bool = False,
) -> CompiledEngine:
    """Parses `graph` and compiles it; its input is `frames`, and its profiles are `ranges`.

    Raises DyCokeError with the library's first reason where it refuses, and where the engine
    changed a type that the graph gives.
    """
    trt = library.trt
    begin = time.monotonic()
    with library.listening() as heard, parsed(library, graph) as (builder, network):
        config = builder.create_builder_config()
        config.num_compute_capabilities = len(sms)
        for index, sm in enumerate(sms):
            capability = trt.ComputeCapability.__members__[f"SM{sm}"]
            if not config.set_compute_capability(capability, index):
                raise DyCokeError(f"{library} does not take sm_{sm}: {heard.first_error()}")
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or layers are not described
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is meant where the graph says so
        if strip_weights:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        for r in ranges:
            profile = builder.create_optimization_profile()
            profile.set_shape(FRAMES, r.least, r.best, r.most)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise DyCokeError(f"{graph}: {library} built no engine: {heard.first_error()}")
        description = heard.last(BEGINNING) or ""
        layers = parse_layers(description)
        check_types(layers, network, f"{graph}: {library}")
    seconds = time.monotonic() - begin
    return CompiledEngine(plan, layers, parse_io(description), _activations(heard), seconds)


@contextmanager
def parsed(library: LoadedLibrary, graph: Path) -> Iterator[tuple[Any, Any]]:
    """(builder, strongly typed network) of an ONNX file. Raises DyCokeError with the parser's first
    error, its node included."""
    trt = library.trt
    builder = trt.Builder(library.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)  # owns the weights until the block ends
    if not parser.parse_from_file(str(graph)):
        raise DyCokeError(f"{graph}: {library} cannot parse it: {_parser_error(parser)}")
    yield builder, network


def check_io(engine: CompiledEngine, manifest: Manifest, who: str) -> None:
    """Raises DyCokeError where names, types or fixed sizes of the engine's tensors are not the
    manifest's; an engine whose compiler described nothing passes."""
    side = manifest.vision.image_size
    wanted = {
        FRAMES: ("Input", Tensor(FRAMES, (-1, -1, 3, side, side), "UInt8")),
        VISUAL_EMBEDS: (
            "Output",
            Tensor(VISUAL_EMBEDS, (-1, -1, manifest.llm.hidden), manifest.vision.dtype.tensorrt),
        ),
    }
    for name, (mode, tensor) in wanted.items():
        if not engine.io:
            return
        built_mode, built = engine.io.get(name, ("nothing", Tensor(name, (), "")))
        sizes = zip(built.shape, tensor.shape, strict=False)
        if (
            (built_mode, built.dtype, len(built.shape)) != (mode, tensor.dtype, len(tensor.shape))
            or any(expected >= 0 and size != expected for size, expected in sizes)
            or set(engine.io) != set(wanted)
        ):
            raise DyCokeError(
                f"{who} has {', '.join(engine.io)}, {name} as {built_mode} {built.dtype} "
                f"{list(built.shape)}; the manifest says {mode} {tensor.dtype} "
                f"{list(tensor.shape)}"
            )


def _parser_error(parser: Any) -> str:
    """The first error with its node, in one line."""
    if not parser.num_errors:
        return "no reason given"
    error = parser.get_error(0)
    node = f"{error.node_operator()} {error.node_name()}: " if error.node_name() else ""
    return node + " ".join(str(error.desc()).split())


def _activations(heard: Messages) -> int:
    """Bytes of a context: of its largest profile."""
    pattern = re.compile(r"Total Activation Memory: (\d+) bytes")
    sizes = [int(match[1]) for _, text in heard.lines if (match := pattern.match(text))]
    return max(sizes, default=0)
