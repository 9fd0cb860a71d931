"""TensorRT's Python runtime, as far as runtime/vision_engine.py uses it, on a CPU's memory.

An "engine" is JSON: {"bundle": ..., "profiles": [[least, best, most], ...]}. It computes what the
bundle's graph does, in ONNX Runtime or, for bfloat16, in torch. It is strict where TensorRT is: a
shape outside of the active profile, an address that was not set and an unknown name are refused. It
proves the code around TensorRT and nothing about TensorRT; that its names exist in NVIDIA's library
is what tests/runtime/test_vision_engine.py checks.
"""

from __future__ import annotations

import ctypes
import json
from enum import Enum
from pathlib import Path
from typing import Any

__version__ = "10.14.1.48"


class DataType(Enum):
    FLOAT, HALF, BF16, UINT8 = range(4)


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Severity, text: str) -> None: ...


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, content: Any) -> ICudaEngine | None:
        try:
            return ICudaEngine(json.loads(bytes(content)), self.logger)
        except ValueError:
            error = ILogger.Severity.ERROR
            self.logger.log(error, "IRuntime::deserializeCudaEngine: Error Code 1:\n bad magic tag")
            self.logger.log(error, "a second line that repeats it")
            return None


class ICudaEngine:
    def __init__(self, plan: dict[str, Any], logger: ILogger) -> None:
        self.plan, self.logger = plan, logger
        self.bundle = Path(plan["bundle"])
        self.num_optimization_profiles = len(plan["profiles"])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        assert name == "frames"
        shapes: list[list[int]] = self.plan["profiles"][index]
        return shapes

    def get_tensor_dtype(self, name: str) -> DataType:
        from dycoke_trt.bundle.manifest import read_manifest

        if name == "frames":
            return DataType.UINT8
        assert name == "visual_embeds"
        names = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
        return DataType[names[read_manifest(self.bundle).vision.dtype]]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.calls: list[str] = []

    def set_optimization_profile_async(self, index: int, _stream: int) -> bool:
        self.calls.append(f"profile {index}")
        self.profile, self.shape = index, None
        return 0 <= index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shape = shape
        fits = all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        return fits or self._error(f"setInputShape: {shape} is outside of profile {self.profile}")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        from dycoke_trt.bundle.manifest import read_manifest

        assert name == "visual_embeds"
        assert self.shape is not None
        manifest = read_manifest(self.engine.bundle)
        return (self.shape[0], manifest.visual_tokens(self.shape[1]), manifest.llm.hidden)

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in ("frames", "visual_embeds"):
            return self._error(f"setTensorAddress: no tensor {name}")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, _stream: int) -> bool:
        import torch
        from dycoke_trt.bundle.manifest import read_manifest
        from dycoke_trt.runtime.vision import OnnxVision
        from dycoke_trt.runtime.vision_torch import TorchVision

        self.calls.append("run")
        if self.shape is None or set(self.addresses) != {"frames", "visual_embeds"}:
            return self._error("enqueueV3: an address or a shape is missing")
        bundle = self.engine.bundle
        is_bf16 = read_manifest(bundle).vision.dtype == "bfloat16"
        vision = TorchVision.from_bundle(bundle, "cpu") if is_bf16 else OnnxVision(bundle, 1)
        size = 1
        for length in self.shape:
            size *= length
        memory = (ctypes.c_uint8 * size).from_address(self.addresses["frames"])
        frames = torch.frombuffer(memory, dtype=torch.uint8).view(self.shape)
        embeddings = vision(frames).contiguous()
        assert tuple(embeddings.shape) == self.get_tensor_shape("visual_embeds")
        ctypes.memmove(self.addresses["visual_embeds"], embeddings.data_ptr(), embeddings.nbytes)
        return True

    def _error(self, text: str) -> bool:
        self.engine.logger.log(ILogger.Severity.ERROR, text)
        return False
