"""Stands for the compiled module `tensorrt` while TensorRT-LLM's Python files define a network.

It has the part of the API that they use for Qwen2; building an engine gives the recorded network as
bytes. What a network never touches (runtimes, refitters, other layers) is an empty class: using it
fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dycoke_trt.tests.engines.network.fake_network import (
    ILayer,
    INetworkDefinition,
    ITensor,
    get_plugin_registry,
)
from dycoke_trt.tests.engines.network.fake_types import (
    ActivationType,
    BuilderFlag,
    DataType,
    Dims,
    ElementWiseOperation,
    GatherMode,
    LayerType,
    MatrixOperation,
    NetworkDefinitionCreationFlag,
    PluginField,
    PluginFieldCollection,
    PluginFieldType,
    ProfilingVerbosity,
    ReduceOperation,
    SampleMode,
    TensorLocation,
    TensorRTPhase,
    UnaryOperation,
    Weights,
    bfloat16,
    enumeration,
    float16,
    float32,
    fp4,
    fp8,
    int4,
    int8,
    int32,
    int64,
    uint8,
)

__version__ = "10.14.1"
globals()["bool"] = DataType.BOOL
__all__ = [
    "ActivationType",
    "BuilderFlag",
    "DataType",
    "Dims",
    "ElementWiseOperation",
    "GatherMode",
    "ILayer",
    "INetworkDefinition",
    "ITensor",
    "LayerType",
    "MatrixOperation",
    "NetworkDefinitionCreationFlag",
    "PluginField",
    "PluginFieldCollection",
    "PluginFieldType",
    "ProfilingVerbosity",
    "ReduceOperation",
    "SampleMode",
    "TensorLocation",
    "TensorRTPhase",
    "UnaryOperation",
    "Weights",
    "bfloat16",
    "float16",
    "float32",
    "fp4",
    "fp8",
    "get_plugin_registry",
    "int4",
    "int8",
    "int32",
    "int64",
    "uint8",
]
_unused: dict[str, Any] = {
    name: enumeration(name)
    for name in (
        "FillOperation", "InterpolationMode", "LoopOutput", "PoolingType", "ScatterMode",
        "ResizeCoordinateTransformation", "TopKOperation", "TripLimit",
    )
}  # fmt: skip


class IOptimizationProfile:
    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)), name

    set_shape_input = set_shape


class IBuilderConfig:
    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def set_flag(self, flag: Any) -> None:
        pass

    def create_timing_cache(self, _: bytes) -> Any:
        return ITimingCache()

    def set_timing_cache(self, *_: Any, **__: Any) -> Any:
        return True

    def get_timing_cache(self) -> Any:
        return ITimingCache()


class ITimingCache:
    def serialize(self) -> memoryview:
        return memoryview(b"")

    def combine(self, other: Any, ignore_mismatch: Any) -> None:
        pass


class Builder:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        assert flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return INetworkDefinition(self)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, _: IBuilderConfig) -> bytes:
        return network.record().to_bytes()


class Logger:
    VERBOSE, INFO, WARNING, ERROR, INTERNAL_ERROR = range(5)

    def __init__(self, severity: int = WARNING) -> None:
        self.min_severity = severity

    def log(self, severity: int, message: str) -> None:
        if severity >= self.ERROR:
            print(message)


Logger.Severity = Logger  # type: ignore[attr-defined]


def __getattr__(name: str) -> Any:
    """Kinds of layers are all ILayer (files cast between them); the rest is never used."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _unused:
        return _unused[name]
    made = ILayer if name.startswith("I") and name.endswith("Layer") else type(name, (), {})
    globals()[name] = made
    return made


def __dir__() -> Iterator[str]:
    return iter(globals())
