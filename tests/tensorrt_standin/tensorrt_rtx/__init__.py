"""What TensorRT for RTX has beyond TensorRT, on top of that stand-in: see there.

An engine that begins with "{" is valid. Kernels "compiled" are counted, and are what a cache holds.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import tensorrt
from tensorrt import DataType, ILogger

__all__ = ["DataType", "ILogger"]
__version__ = "1.7.1.116"


class EngineValidity(Enum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class EngineInvalidityDiagnostics(Enum):
    VERSION_MISMATCH, UNSUPPORTED_CC = 1, 2


class CudaGraphStrategy(Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class Runtime(tensorrt.Runtime):
    engine_header_size = 64

    def get_engine_validity(self, header: bytes) -> tuple[EngineValidity, int]:
        assert len(header) <= self.engine_header_size
        if header.startswith(b"{"):
            return EngineValidity.VALID, 0
        return EngineValidity.INVALID, 3 if header.startswith(b"old") else 0

    def deserialize_cuda_engine(self, content: Any) -> ICudaEngine | None:
        made = super().deserialize_cuda_engine(content)
        return made and ICudaEngine(made.plan, made.logger)


class ICudaEngine(tensorrt.ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, config: IRuntimeConfig | None = None) -> IExecutionContext:
        return IExecutionContext(self, config)


class IRuntimeCache:
    def __init__(self) -> None:
        self.kernels: list[str] = []

    def serialize(self) -> bytes:
        return b"kernels:" + " ".join(self.kernels).encode()

    def deserialize(self, blob: bytes) -> bool:
        head, _, kernels = blob.decode().partition(":")
        if head != "kernels":
            return False
        self.kernels = kernels.split()
        return True


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class IExecutionContext(tensorrt.IExecutionContext):
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig | None) -> None:
        super().__init__(engine)
        self.config = config

    def execute_async_v3(self, stream: int) -> bool:
        cache, kernel = None if self.config is None else self.config.cache, f"profile{self.profile}"
        if cache is not None and kernel not in cache.kernels:
            self.calls.append(f"compile {kernel}")
            cache.kernels.append(kernel)
        return bool(super().execute_async_v3(stream))


class Refitter:
    def __init__(self, engine: ICudaEngine, _logger: ILogger) -> None:
        self.engine = engine

    def refit_cuda_engine(self) -> bool:
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self.refitter, self.logger = refitter, logger

    def refit_from_file(self, model: str) -> bool:
        return Path(model).is_file()
