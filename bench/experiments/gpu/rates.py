"""Timing on a GPU, and what the machine can do: the floors of everything else in a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ....runtime.nvidia_smi import nvidia_smi

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], repeats: int = 5, inner: int = 1) -> float:
    """Median seconds of one of the `inner` pieces of `work`, replayed as a CUDA graph.

    A graph, so that launches from Python do not count. Warm-up runs come first.
    """
    if not CUDA:  # trying out the program without a GPU
        begun = time.perf_counter()
        work()
        return (time.perf_counter() - begun) / inner
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    times: list[float] = []
    for _ in range(repeats):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[repeats // 2] / inner


def measure_rates(scale: int = 1) -> dict[str, float]:
    """copy and read-reduction in bytes/s, bf16 matmul in FLOP/s, by large plain operations.

    scale: divides the sizes, to try the program out.
    """
    count = (1 << 32) // scale  # bytes, far beyond any cache
    source = torch.zeros(count // 4, device=DEVICE)
    target = torch.empty_like(source)
    copy = 2 * count / seconds(partial(target.copy_, source))
    read = count / seconds(source.sum)
    del source, target
    side = 8192 // min(scale, 64)
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    matmul = 2 * side**3 / seconds(lambda: a @ b)
    return {"copy_bytes_per_s": copy, "read_bytes_per_s": read, "bf16_flops": matmul}


def describe_gpu() -> dict[str, Any]:
    """Name, driver, clocks and versions, as far as the machine tells."""
    import triton

    facts: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__}
    if not CUDA:
        return facts | {"gpu": None}
    properties = torch.cuda.get_device_properties(0)
    facts |= {
        "gpu": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }
    return facts | {"driver_version": "unknown"} | clocks("driver_version,power.limit")


def clocks(more: str = "temperature.gpu") -> dict[str, str]:
    """Clocks of the GPU now, and what else nvidia-smi is asked for; empty where it is not there."""
    fields = f"clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,{more}"
    printed = nvidia_smi(f"--query-gpu={fields}", "--format=csv,noheader").strip()
    values = printed.split("\n")[0].split(", ")
    return dict(zip(fields.split(","), values, strict=False)) if printed else {}
