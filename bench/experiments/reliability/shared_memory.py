"""Test 15: clients' shared memory is closed by default; opened, its errors hurt nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from ....runtime.protocol import BLS
from . import canary
from .client import message, one, renewed
from .outcome import Outcome
from .stage import SERVER, Running, Stage

CRITERION = (
    "registering is refused by default; opened: offset and size beyond the region, a region gone "
    "in flight, two clients on one, and the models' own regions are errors; canaries identical"
)


def run(stage: Stage, quick: bool) -> Outcome:  # noqa: ARG001 (takes seconds)
    closed = stage.shared()
    with _region(4096) as region:
        accepted = _register(closed, "mine", region.name, 4096)
    ours = [name for name in _own_regions(closed) if _register(closed, f"x{name}", name, 64) == 200]
    figures: dict[str, Any] = {
        "closed: status of registering": accepted,
        "closed: own regions registered": len(ours),
    }
    passed = accepted not in (0, 200) and not ours
    with stage.server(opened=("shared-memory",)) as server:
        before = canary.sing(server.grpc, 1)
        figures |= _opened(server)
        server.wait(0)
        figures["canaries changed"] = canary.changed(before, canary.sing(server.grpc, 1))
    passed = passed and not any(
        figures[name]
        for name in ("overflows accepted", "different from bytes", "left in /dev/shm",
                     "canaries changed")
    )  # fmt: skip
    note = ""
    if figures["own regions registered"]:
        note = (
            "opened, this server's version lets clients register the regions of its own models "
            "(refused since 2.59.1: CVE-2025-23319); closed, as by default, it does not"
        )
    return Outcome(passed, figures, note)


def _opened(server: Running) -> dict[str, Any]:
    video = canary.video(0)
    request = message(BLS, text_input=b"What?", video_bytes_input=video, max_tokens=8)
    wanted = one(server.grpc, request)
    with _region(video.nbytes) as region:
        assert region.buf is not None
        region.buf[: video.nbytes] = video.tobytes()
        status = _register(server, "video", region.name, video.nbytes)
        shared = renewed(request)
        _point(shared, "video", 0, video.nbytes)
        answers = [one(server.grpc, renewed(shared)) for _ in range(2)]
        accepted = 0
        for offset, size in (
            (1, video.nbytes),
            (2**63 - 1, video.nbytes),
            (2**64 - 1, video.nbytes),
            (0, video.nbytes + 1),
            (0, 2**63),
            (video.nbytes, 1),
        ):
            wrong = renewed(shared)
            _point(wrong, "video", offset, size)
            accepted += not one(server.grpc, wrong).error
        too_large = _register(server, "large", region.name, 2**40)
        unregistered = server.post("v2/systemsharedmemory/region/video/unregister", {})
        gone = one(server.grpc, renewed(shared)).error
    own = sum(_register(server, f"own{name}", name, 64) == 200 for name in _own_regions(server))
    return {
        "registered": status,
        "different from bytes": sum(a.content != wanted.content for a in answers),
        "overflows accepted": accepted + (too_large == 200),
        "unregistered": unregistered,
        "after that": gone[:80],
        "own regions registered": own,
        "left in /dev/shm": int(Path(f"/dev/shm/{region.name}").exists()),
    }


@contextmanager
def _region(size: int) -> Iterator[SharedMemory]:
    region = SharedMemory(create=True, size=size)
    try:
        yield region
    finally:
        region.close()
        region.unlink()


def _own_regions(server: Running) -> list[str]:
    """Shared memory that the server's models talk through: what its process maps."""
    if SERVER not in server.processes:
        return []
    maps = Path(f"/proc/{server.processes[SERVER]}/maps").read_text()
    return sorted(set(re.findall(r"/dev/shm/(\S+)", maps)))


def _point(request: Any, region: str, offset: int, size: int) -> None:
    """The video comes from a region instead of the message."""
    number = next(i for i, t in enumerate(request.inputs) if t.name == "video_bytes_input")
    tensor = request.inputs[number]
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = min(size, 2**63 - 1)
    tensor.parameters["shared_memory_offset"].int64_param = min(offset, 2**63 - 1)
    del request.raw_input_contents[:]
    for other in request.inputs:
        if other.name == "text_input":
            other.contents.bytes_contents[:] = [b"What?"]
        elif other.name == "max_tokens":
            other.contents.int_contents[:] = [8]


def _register(server: Running, name: str, key: str, size: int) -> int:
    path = f"v2/systemsharedmemory/region/{name}/register"
    return server.post(path, {"key": f"/{key}", "offset": 0, "byte_size": size})
