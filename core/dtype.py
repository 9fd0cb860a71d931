"""The float types that models are exported, stored and run in: one row each, with every name."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Dtype(StrEnum):
    """A float type. Its value is torch's name, which bundles, TensorRT-LLM and `--dtype` use too;
    its name is the Triton server's.

    safetensors, tensorrt: its name there (of TensorRT's DataType). bytes: of an element.
    """

    safetensors: str
    tensorrt: str
    bytes: int

    FP32 = "float32", "F32", "FLOAT", 4
    FP16 = "float16", "F16", "HALF", 2
    BF16 = "bfloat16", "BF16", "BF16", 2

    # Only rows come here, all filled; the defaults are for type checkers, who see Dtype("float16").
    def __new__(cls, value: str, safetensors: str = "", tensorrt: str = "", size: int = 0) -> Dtype:
        dtype = str.__new__(cls, value)
        dtype._value_ = value
        dtype.safetensors, dtype.tensorrt, dtype.bytes = safetensors, tensorrt, size
        return dtype

    @property
    def short(self) -> str:
        """The Triton language's name: fp32, fp16, bf16."""
        return self.name.lower()

    @property
    def torch(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.value)
        return dtype
