"""Tensors of dtypes that numpy does not have, such as BF16: by DLPack, as torch's."""

from __future__ import annotations

from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack


def torch_array(request: Any, name: str) -> torch.Tensor | None:
    """An input tensor on the CPU, in the server's memory; None where it was left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else from_dlpack(tensor.to_dlpack()).cpu()


def torch_tensor(name: str, value: torch.Tensor) -> Any:
    """An output tensor, in the memory where it is; what wrote it there has to have ended."""
    return pb_utils.Tensor.from_dlpack(name, value)
