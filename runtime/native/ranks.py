"""All ranks of a tensor-parallel checkpoint side by side in one process: to verify an export."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...bundle.llm_reader import read_llm
from ...core.config import DyCokeConfig
from ..runner import ModelRunner
from .cpu import cpu_runner
from .weights import collect

TIMEOUT = 600  # seconds that a rank waits for the others; one that failed never comes


def load_ranks(
    directory: Path,
    num_blocks: int,
    tokens_per_block: int,
    *,
    dtype: torch.dtype | None = None,
) -> list[ModelRunner]:
    """One runner per rank, on the CPU, each with its own pool; nothing is pruned.

    Several have to make the same calls at the same time, each in its own thread: their partial
    sums meet at a barrier, as in an all-reduce. Every rank has the whole head, so its logits are
    complete. dtype: what to compute in; default the checkpoint's. Raises what `read_llm` raises.
    """
    checkpoint = read_llm(directory)
    tp, kind = checkpoint.tp, dtype or checkpoint.dtype.torch
    config = checkpoint.llm.of_rank(tp)
    heads = [checkpoint.tensor("lm_head.weight", rank) for rank in range(tp)]
    head = torch.cat(heads)[: config.vocab].to(kind)  # the last rank's is padded

    def tensors(rank: int) -> Callable[[str], Tensor]:
        def get(name: str) -> Tensor:
            return head if name == "lm_head.weight" else checkpoint.tensor(name, rank).to(kind)

        return get

    reduces = all_reduce(tp)
    return [
        cpu_runner(
            config,
            collect(config, tensors(i)),
            num_blocks,
            tokens_per_block,
            DyCokeConfig.off(),
            reduce=reduces[i],
        )
        for i in range(tp)
    ]


def all_reduce(ranks: int) -> list[Callable[[Tensor], Tensor]]:
    """One function per rank: each returns the sum of what all ranks passed."""
    barrier, parts = threading.Barrier(ranks, timeout=TIMEOUT), [torch.empty(0)] * ranks

    def member(rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(x: Tensor) -> Tensor:
            parts[rank] = x
            barrier.wait()
            total = torch.stack(parts).sum(0)
            barrier.wait()  # nobody's next part before everybody has read this one
            return total

        return reduce

    return [member(rank) for rank in range(ranks)]
