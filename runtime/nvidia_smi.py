"""The GPUs of this machine, as the driver's own tool describes them. Nothing is imported for it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

_QUERY = "name,compute_cap,memory.total,driver_version"
_TIMEOUT = 20  # seconds; a driver that hangs must not hang us


@dataclass(frozen=True)
class VisibleGpu:
    """name: the product's; sm: 90 for compute capability 9.0; memory: bytes; driver: version."""

    name: str
    sm: int
    memory: float
    driver: str


def visible_gpus() -> list[VisibleGpu]:
    """What `nvidia-smi` lists; empty without a driver, or with one that answers nonsense."""
    printed = nvidia_smi(f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
    return [gpu for line in printed.splitlines() if (gpu := parse_gpu(line)) is not None]


def driver_cuda() -> str | None:
    """The newest CUDA version that the driver runs, such as 13.0; None without a driver."""
    match = re.search(r"CUDA Version:\s*([\d.]+)", nvidia_smi())
    return match[1] if match else None


def parse_gpu(line: str) -> VisibleGpu | None:
    """One line of the query: 'NVIDIA L4, 8.9, 23034, 580.65.06' (memory in MiB)."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not re.fullmatch(r"\d+\.\d+", parts[1]) or not parts[2].isdigit():
        return None
    return VisibleGpu(parts[0], int(parts[1].replace(".", "")), int(parts[2]) * 2**20, parts[3])


def nvidia_smi(*arguments: str) -> str:
    """What it prints; "" where it is not there, or fails."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
