"""A video that takes long keeps nobody waiting, on the real server and through both pipelines."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from dycoke_trt.bench.experiments.fairness import one_gop
from dycoke_trt.runtime.protocol import BLS, ENSEMBLE
from dycoke_trt.runtime.video import fork_server
from dycoke_trt.tests.support import until
from dycoke_trt.tests.triton_repo.conftest import Server
from dycoke_trt.tests.triton_repo.streams import ask, connection, tensor
from dycoke_trt.tests.triton_repo.test_refusals import GOOD

MANY = 6  # three times what is read at once


@pytest.fixture(scope="module")
def long_video() -> bytes:
    """A second of a processor: four times what makes a video a long one."""
    return one_gop(1280, 720, 200)


def niceness(group: int) -> set[int]:
    """Of the fork server and the processes that read videos, all of that server's process group."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            command = (folder / "cmdline").read_bytes()
            if fork_server.__name__.encode() in command and os.getpgid(int(folder.name)) == group:
                found.add(os.getpriority(os.PRIO_PROCESS, int(folder.name)))
    return found


@pytest.mark.parametrize("model", [ENSEMBLE, BLS])
def test_short_requests_pass_long_videos(server: Server, long_video: bytes, model: str) -> None:
    """With one line for all, the short one would be read after all that came before."""
    inputs = GOOD | {"video_file_input": long_video, "max_tokens": 2}
    tensors = [tensor(name, value) for name, value in inputs.items()]
    texts = {uuid.uuid4().hex: "" for _ in range(MANY)}
    waiting = set(texts)
    own = os.getpriority(os.PRIO_PROCESS, server.running.pid)
    with connection(server.grpc) as stream:
        for name in texts:
            stream.send(model, name, tensors)
        until(lambda: niceness(server.running.pid) == {own, min(own + 10, 19)})
        assert ask(server.grpc, model, GOOD).error == ""
        assert stream.arrived() <= MANY  # of half of them: text, and an empty end
        for name, result, error in stream.replies():
            assert error is None, error.message()
            text = result.as_numpy("text_output")
            texts[name] += "" if text is None else text.item().decode()
            if result.get_response().parameters["triton_final_response"].bool_param:
                waiting.discard(name)
                if not waiting:
                    break
    assert len(set(texts.values())) == 1
