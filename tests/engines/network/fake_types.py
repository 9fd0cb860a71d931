"""Enumerations and small values of the stand-in for `tensorrt` (fake_tensorrt.py)."""

from __future__ import annotations

import ctypes
import enum
from typing import Any

import numpy as np


class _OpenType(type):
    """An enumeration whose members come into being when they are named."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        member = cls()
        member.name = name
        setattr(cls, name, member)
        return member


class Open(metaclass=_OpenType):
    name: str

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __int__(self) -> int:
        return 1


class _Number(enum.Enum):
    """A member is its number where one is asked for; it prints as TensorRT's do."""

    def __int__(self) -> int:
        return int(self.value)

    __index__ = __int__


class DataType(_Number):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4, FP4 = range(11)

    @property
    def itemsize(self) -> int:
        return {"FLOAT": 4, "INT32": 4, "INT64": 8, "HALF": 2, "BF16": 2}.get(self.name, 1)


float32, float16, int8, int32 = DataType.FLOAT, DataType.HALF, DataType.INT8, DataType.INT32
uint8, fp8, bfloat16 = DataType.UINT8, DataType.FP8, DataType.BF16
int64, int4, fp4 = DataType.INT64, DataType.INT4, DataType.FP4


class PluginFieldType(_Number):
    FLOAT16, FLOAT32, FLOAT64, INT8, INT16, INT32, CHAR, DIMS, UNKNOWN, BF16, INT64 = range(11)


class NetworkDefinitionCreationFlag(_Number):
    STRONGLY_TYPED = 1


class LayerType(Open):
    pass


def enumeration(name: str) -> Any:
    return type(name, (Open,), {})


ElementWiseOperation = enumeration("ElementWiseOperation")
UnaryOperation = enumeration("UnaryOperation")
ActivationType = enumeration("ActivationType")
ReduceOperation = enumeration("ReduceOperation")
MatrixOperation = enumeration("MatrixOperation")
GatherMode = enumeration("GatherMode")
SampleMode = enumeration("SampleMode")
TensorLocation = enumeration("TensorLocation")
TensorRTPhase = enumeration("TensorRTPhase")
ProfilingVerbosity = enumeration("ProfilingVerbosity")
BuilderFlag = enumeration("BuilderFlag")


class Dims(tuple[int, ...]):
    pass


class Weights:
    """A view of memory that the caller keeps, and may still fill."""

    def __init__(self, dtype: DataType, address: int, count: int) -> None:
        self.dtype, self.address, self.size = dtype, address, count

    def array(self) -> np.ndarray[Any, Any]:
        kind = {"FLOAT": "f4", "HALF": "f2", "INT32": "i4", "INT64": "i8", "BOOL": "?"}
        kinds = kind.get(self.dtype.name, f"V{self.dtype.itemsize}")
        data = ctypes.string_at(self.address, self.size * self.dtype.itemsize)
        return np.frombuffer(data, kinds)


class PluginField:
    def __init__(self, name: str, data: Any, type: PluginFieldType) -> None:  # noqa: A002
        self.name, self.data, self.type = name, np.array(data), type


class PluginFieldCollection(list[PluginField]):
    pass
