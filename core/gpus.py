"""Published figures of the GPUs that people deploy on: the physical floor of every stage."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import DyCokeError


@dataclass(frozen=True)
class Gpu:
    """One GPU. Peak figures from the vendor's data sheet; nothing here was measured.

    memory: bytes (10^9 per GB); bandwidth: bytes/s; flops: dense bf16 tensor FLOP/s with fp32
    accumulation (data sheets that print the sparse figure are halved).
    """

    name: str
    sm: int
    memory: float
    bandwidth: float
    flops: float
    source: str


def _gpu(name: str, sm: int, gb: float, gbps: float, tflops: float, source: str) -> Gpu:
    return Gpu(name, sm, gb * 1e9, gbps * 1e9, tflops * 1e12, source)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100", 80, 80, 2039, 312, "NVIDIA A100 80GB SXM data sheet"),
        _gpu("a10", 86, 24, 600, 125, "NVIDIA A10 data sheet"),
        _gpu("a6000", 86, 48, 768, 154.8, "NVIDIA RTX A6000 data sheet (309.7 sparse)"),
        _gpu("l4", 89, 24, 300, 121, "NVIDIA L4 data sheet (242 sparse)"),
        _gpu("l40s", 89, 48, 864, 362, "NVIDIA L40S data sheet"),
        _gpu("rtx4090", 89, 24, 1008, 165.2, "NVIDIA Ada GPU architecture white paper, table 2"),
        _gpu("h100", 90, 80, 3350, 989.4, "NVIDIA H100 SXM data sheet (1979 sparse)"),
        _gpu("h200", 90, 141, 4800, 989.4, "NVIDIA H200 SXM data sheet (1979 sparse)"),
        _gpu("b200", 100, 180, 8000, 2250, "NVIDIA DGX B200 data sheet, one of eight GPUs"),
    )
}


def gpu(name: str) -> Gpu:
    """The GPU named `name`; raises DyCokeError listing the table."""
    if name not in GPUS:
        raise DyCokeError(
            f"unknown GPU {name!r}; table: {', '.join(GPUS)}; or give --bandwidth and --flops"
        )
    return GPUS[name]
