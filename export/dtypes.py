"""The dtypes that an export can have, under the names that the command line uses."""

from __future__ import annotations

from typing import Literal

import torch

DTypeName = Literal["fp32", "fp16", "bf16"]
TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
