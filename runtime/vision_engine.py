"""The vision step on an engine, by the Python runtime of TensorRT or of TensorRT for RTX.

One execution context; a call switches it to the profile that has its number of frames, if it is not
there already. Input and output are torch's tensors, whose memory the engine uses as it is: nothing
is copied between the two.

Followed: TrtRunner in polygraphy/backend/trt/runner.py (0.49), the execution of
triton-inference-server/tensorrt_backend, NVIDIA's pages on the runtime cache and on compatibility
checks of TensorRT for RTX 1.x.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bundle.paths import FRAMES, VISUAL_EMBEDS
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from .gpu import find_gpu
from .tensorrt_library import LoadedLibrary

_DTYPES = {dtype.tensorrt: dtype.torch for dtype in Dtype}
_log = logging.getLogger(__name__)


class EngineVision:
    """`path` loaded by `library` on the GPU.

    again: the command that builds it again, for error messages. runtime_cache: file of kernels that
    TensorRT for RTX compiled for this GPU, read if it is there and written after a profile's first
    run; None keeps none, and TensorRT itself has no such thing. cuda_graph: let TensorRT for RTX
    capture and replay the whole engine. refit: the ONNX file whose weights a stripped engine takes.
    Raises DyCokeError, with the library's own reason in one line, for an engine that it cannot run
    here.
    """

    def __init__(
        self,
        path: Path,
        library: LoadedLibrary,
        *,
        again: str,
        runtime_cache: Path | None = None,
        cuda_graph: bool = False,
        refit: Path | None = None,
    ) -> None:
        # Released in this order: a context that outlives its cache ends the process.
        self._context: Any = None
        self._config: Any = None
        self._cache: Any = None
        self._engine: Any = None
        self._library = library
        self._where = f"{path}: {library}"
        with self._reasons("cannot load it", again):
            self._runtime = library.trt.Runtime(library.logger)
            self._engine = self._deserialize(path)
        self._device = find_gpu()
        if refit is not None:
            with self._reasons(f"cannot take the weights of {refit}", again):
                self._refit(refit)
        self._ranges = [
            tuple(tuple(shape) for shape in self._engine.get_tensor_profile_shape(FRAMES, i))
            for i in range(self._engine.num_optimization_profiles)
        ]
        self._dtype = self._output_dtype()
        self._cache_file = runtime_cache
        with self._reasons("made no execution context"):
            self._context = self._make_context(cuda_graph)
        self._stream = _new_stream(self._device) if self._device.type == "cuda" else None
        self._profile = 0  # where a new context is
        self._used: set[int] = set()

    def __call__(self, frames: Tensor) -> Tensor:
        """frames: uint8 [B, F, 3, S, S], F a multiple of 4 -> [B, M+1, hidden] on the device.

        Returns when the result is there. Raises DyCokeError for a shape that no profile has.
        """
        profile = self._profile_of(frames)
        with self._on_stream() as stream, self._reasons(f"failed on frames {list(frames.shape)}"):
            given = frames.to(self._device, non_blocking=True).contiguous()
            context = self._context
            if profile != self._profile:
                _must(context.set_optimization_profile_async(profile, stream))
                self._profile = profile
            _must(context.set_input_shape(FRAMES, tuple(given.shape)))
            shape = tuple(context.get_tensor_shape(VISUAL_EMBEDS))
            embeddings = torch.empty(shape, dtype=self._dtype, device=self._device)
            _must(context.set_tensor_address(FRAMES, given.data_ptr()))
            _must(context.set_tensor_address(VISUAL_EMBEDS, embeddings.data_ptr()))
            _must(context.execute_async_v3(stream))
            if self._stream is not None:
                self._stream.synchronize()
        if profile not in self._used:
            self._used.add(profile)
            self._save_cache()
        return embeddings

    def _deserialize(self, path: Path) -> Any:
        trt, runtime = self._library.trt, self._runtime
        try:
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise DyCokeError(f"{path}: cannot be read ({error})") from None
        with content:
            if hasattr(runtime, "get_engine_validity"):
                header = content[: runtime.engine_header_size]
                validity, bits = runtime.get_engine_validity(header)
                if validity == trt.EngineValidity.INVALID:
                    raise _RefusedError(_reasons_of(trt.EngineInvalidityDiagnostics, int(bits)))
            engine = runtime.deserialize_cuda_engine(content)
        _must(engine is not None)
        return engine

    def _refit(self, graph: Path) -> None:
        trt = self._library.trt
        refitter = trt.Refitter(self._engine, self._library.logger)
        parser = trt.OnnxParserRefitter(refitter, self._library.logger)
        _must(parser.refit_from_file(str(graph)))
        _must(refitter.refit_cuda_engine())

    def _output_dtype(self) -> torch.dtype:
        name = str(self._engine.get_tensor_dtype(VISUAL_EMBEDS)).rpartition(".")[2]
        if name not in _DTYPES:
            raise DyCokeError(
                f"{self._where}: {VISUAL_EMBEDS} is {name}; allowed: {', '.join(_DTYPES)}"
            )
        return _DTYPES[name]

    def _make_context(self, cuda_graph: bool) -> Any:
        if self._cache_file is None and not cuda_graph:
            context = self._engine.create_execution_context()
        else:
            config = self._config = self._engine.create_runtime_config()
            if cuda_graph:
                strategy = self._library.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
                config.cuda_graph_strategy = strategy
            if self._cache_file is not None:
                # Kept in this object: the configuration does not keep it.
                self._cache = config.create_runtime_cache()
                if self._cache_file.is_file():  # one of another GPU or driver is ignored
                    self._cache.deserialize(self._cache_file.read_bytes())
                _must(config.set_runtime_cache(self._cache))
            context = self._engine.create_execution_context(config)
        _must(context is not None)
        return context

    def _profile_of(self, frames: Tensor) -> int:
        shape = tuple(frames.shape)
        for index, (least, _, most) in enumerate(self._ranges):
            if len(shape) == len(least) and all(
                low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
            ):
                return index
        ranges = ", ".join(f"{least} to {most}" for least, _, most in self._ranges)
        raise DyCokeError(
            f"{self._where}: frames are {shape}, profiles of the engine have {ranges}; export "
            "with another --max-frames and build again"
        )

    @contextmanager
    def _on_stream(self) -> Iterator[int]:
        """This instance's own stream: on the default one TensorRT synchronises the device."""
        if self._stream is None:
            yield 0
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield self._stream.cuda_stream

    @contextmanager
    def _reasons(self, what: str, remedy: str = "") -> Iterator[None]:
        """Turns a refusal inside the block into a DyCokeError with the library's first error."""
        with self._library.listening() as heard:
            try:
                yield
            except _RefusedError as refused:
                reason = refused.reason or heard.first_error()
                end = f"; {remedy}" if remedy else ""
                raise DyCokeError(f"{self._where} {what} ({reason}){end}") from None

    def _save_cache(self) -> None:
        """Where the engine lies on a read-only mount, every start compiles its kernels again."""
        if self._cache is None or self._cache_file is None:
            return
        partial = self._cache_file.with_name(f".{self._cache_file.name}.partial")
        try:
            partial.write_bytes(self._cache.serialize())
            partial.replace(self._cache_file)
        except OSError as error:
            _log.warning("%s: the runtime cache is not kept (%s)", self._cache_file, error)


class _RefusedError(Exception):
    """The library said no. reason: "" where it is in the log."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def _must(done: object) -> None:
    if not done:
        raise _RefusedError


def _reasons_of(diagnostics: Any, bits: int) -> str:
    """Names of the bits in words, such as "version mismatch"; "" where none is set."""
    members = diagnostics.__members__.items()
    names = [name for name, member in members if int(member.value) & bits]
    return ", ".join(name.replace("_", " ").lower() for name in names)
