"""The LLM step's engine, whichever runs it: native, or TensorRT-LLM's executor."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..bundle.record import open_build
from .limits import RequestLimits
from .request import Request
from .selection import SelectionCounts


class Pool(Protocol):
    """Blocks of the KV pool."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def free(self) -> int: ...


class LlmEngine(Protocol):
    """One thread calls `step`; any thread may call the others. Described at Scheduler."""

    selection: SelectionCounts

    @property
    def blocks(self) -> Pool: ...

    def submit(self, request: Request) -> None: ...

    def cancel(self, request_id: str) -> bool: ...

    def in_flight(self) -> int: ...

    def waiting(self) -> int: ...

    def wait_for_work(self, timeout: float | None = None) -> bool: ...

    def step(self) -> bool: ...

    def close(self) -> None: ...


def load_llm(bundle: Path, build: str, limits: RequestLimits | None = None) -> LlmEngine:
    """The engine of what `dycoke build --target build` recorded. limits: of a server's requests.

    Raises DyCokeError where nothing was built, from another bundle, or for another machine.
    """
    _, record = open_build(bundle, build)
    if record.backend == "trtllm":
        from .trtllm.load import load_executor

        return load_executor(bundle, build, limits)
    from .native.load import load_built_engine

    return load_built_engine(bundle, build, limits)
