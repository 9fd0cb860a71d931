"""Training in several processes of one thread each (data parallel, gloo).

On a shared CPU two threads of one operation wait for each other thousands of times per step; two
processes meet once, to average gradients. Results depend on the number of processes only through
the order of sums.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn


def launch(workers: int, function: Callable[..., None], *arguments: Any) -> None:
    """Runs function(*arguments) in `workers` processes, a group of torch.distributed."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        given = (workers, store, function, arguments)
        spawn(_enter, given, nprocs=workers)  # type: ignore[no-untyped-call]


def average_gradients(weights: Iterable[Tensor]) -> None:
    """Replaces every gradient by its mean over the processes."""
    gradients = [w.grad for w in weights if w.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(
        gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(mean.view_as(gradient))


def gather(value: Any) -> list[Any]:
    """The values of all processes, in order of rank, in every process."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _enter(
    number: int, workers: int, store: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=workers)
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()
