"""Published figures of the GPUs that people deploy on: the physical floor of every stage."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core.errors import DyCokeError

OLDEST_SM = 80  # compute capability 8.0: bf16, and the oldest that kernels are compiled for


@dataclass(frozen=True)
class Gpu:
    """One GPU. Peak figures from the vendor's data sheet; nothing here was measured.

    product: words of the name that drivers print. memory: bytes (10^9 per GB); bandwidth: bytes/s;
    flops: dense bf16 tensor FLOP/s with fp32 accumulation (data sheets that print the sparse figure
    are halved).
    """

    name: str
    sm: int
    memory: float
    bandwidth: float
    flops: float
    source: str
    product: str = ""  # of figures that a caller made up


def _gpu(
    name: str, product: str, sm: int, gb: float, gbps: float, tflops: float, source: str
) -> Gpu:
    return Gpu(name, sm, gb * 1e9, gbps * 1e9, tflops * 1e12, f"NVIDIA {source}", product)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100", "A100", 80, 80, 2039, 312, "A100 80GB SXM data sheet"),
        _gpu("a10", "A10", 86, 24, 600, 125, "A10 data sheet"),
        _gpu("a6000", "RTX A6000", 86, 48, 768, 154.8, "RTX A6000 data sheet (309.7 sparse)"),
        _gpu("l4", "L4", 89, 24, 300, 121, "L4 data sheet (242 sparse)"),
        _gpu("l40s", "L40S", 89, 48, 864, 362, "L40S data sheet"),
        _gpu("rtx4090", "RTX 4090", 89, 24, 1008, 165.2, "Ada white paper, table 2"),
        _gpu("rtx5090", "RTX 5090", 120, 32, 1792, 209.5, "RTX Blackwell white paper, table 2"),
        _gpu("h100", "H100", 90, 80, 3350, 989.4, "H100 SXM data sheet (1979 sparse)"),
        _gpu("h200", "H200", 90, 141, 4800, 989.4, "H200 SXM data sheet (1979 sparse)"),
        _gpu("b200", "B200", 100, 180, 8000, 2250, "DGX B200 data sheet, one of eight GPUs"),
    )
}


def gpu(name: str) -> Gpu:
    """The GPU named `name`; raises DyCokeError listing the table."""
    if name not in GPUS:
        raise DyCokeError(
            f"unknown GPU {name!r}; table: {', '.join(GPUS)}; or give --bandwidth and --flops"
        )
    return GPUS[name]


def gpu_of_product(driver_name: str) -> Gpu | None:
    """The GPU whose product name stands in what a driver prints; None where the table has none.

    A10G is an A10 with another power limit.
    """
    words = driver_name.replace("-", " ")
    return next(
        (entry for entry in GPUS.values() if re.search(rf"\b{entry.product}G?\b", words)), None
    )
