"""Names of the steps that the host sees, as ranges that a profiler shows.

    with PREFILL:
        ...
    token = QUEUE.begin()  # ends elsewhere, perhaps in another thread
    QUEUE.end(token)

Ranges go to NVTX (domain `dycoke`) where a profiler such as nsys started this process and the
package nvtx is installed, or to what `report_to` sets. Without either, a range is a look at one
variable. What runs inside a CUDA graph or an engine has no ranges: there, kernels carry the names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

DOMAIN = "dycoke"


class Sink(Protocol):
    """Where ranges go. push and pop nest within a thread; begin and end may cross threads."""

    def push(self, name: str) -> None: ...

    def pop(self) -> None: ...

    def begin(self, name: str) -> Any: ...

    def end(self, token: Any) -> None: ...


class Stage:
    """A named step; one object serves every use, nested and in all threads."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        if _sink is not None:
            _sink.push(self.name)

    def __exit__(self, *_: object) -> None:
        if _sink is not None:
            _sink.pop()

    def begin(self) -> Any:
        """A token for `end`; None where nothing is recorded."""
        return None if _sink is None else _sink.begin(self.name)

    def end(self, token: Any) -> None:
        if token is not None and _sink is not None:
            _sink.end(token)


class NvtxSink:
    """Raises ImportError where the package nvtx is missing."""

    def __init__(self) -> None:
        import nvtx

        self._nvtx: Any = nvtx

    def push(self, name: str) -> None:
        self._nvtx.push_range(name, domain=DOMAIN)

    def pop(self) -> None:
        self._nvtx.pop_range(domain=DOMAIN)

    def begin(self, name: str) -> Any:
        return self._nvtx.start_range(name, domain=DOMAIN)

    def end(self, token: Any) -> None:
        self._nvtx.end_range(token)


REQUEST = Stage("request")
SEND = Stage("send")  # a client asks what the model takes, makes and sends its request
QUEUE = Stage("queue")
DECODE_VIDEO = Stage("decode video")
PREPROCESS = Stage("preprocess")
VISION = Stage("vision+ttm")
PREFILL = Stage("prefill")
DECODE_STEP = Stage("decode step")
SCORE = Stage("score")
SELECT = Stage("select")
ATTENTION = Stage("attention")
SAMPLE = Stage("sample")
DETOKENISE = Stage("detokenise")
# The stages within a request, in the order in which they come.
STAGES = (
    SEND, QUEUE, DECODE_VIDEO, PREPROCESS, VISION, PREFILL, DECODE_STEP,
    SCORE, SELECT, ATTENTION, SAMPLE, DETOKENISE,
)  # fmt: skip


def _profiler() -> Sink | None:
    """NVTX where a profiler asked for it: nsys names what it injects in this variable."""
    if "NVTX_INJECTION64_PATH" not in os.environ:
        return None
    try:
        return NvtxSink()
    except ImportError:
        return None


_sink: Sink | None = _profiler()


@contextmanager
def report_to(sink: Sink | None) -> Iterator[None]:
    """Ranges go to `sink` while the block runs; None records nothing. Not while ranges are open."""
    global _sink
    before, _sink = _sink, sink
    try:
        yield
    finally:
        _sink = before
