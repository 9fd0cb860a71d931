"""A video that takes long keeps nobody waiting, and ends with who asked, on the real server."""

from __future__ import annotations

import os
import signal
import uuid
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import tritonclient.grpc as grpc
from dycoke_trt.bench.experiments.fairness import one_gop
from dycoke_trt.runtime.protocol import BLS, ENSEMBLE, PREPROCESSING
from dycoke_trt.runtime.video import fork_server
from dycoke_trt.tests.support import until
from dycoke_trt.tests.triton_repo.conftest import Server
from dycoke_trt.tests.triton_repo.streams import PATIENCE, ask, connection, tensor
from dycoke_trt.tests.triton_repo.test_refusals import GOOD

MANY = 6  # three times what is read at once


@pytest.fixture(scope="module")
def long_video() -> bytes:
    """A second of a processor: four times what makes a video a long one."""
    return one_gop(1280, 720, 200)


def niceness(group: int) -> dict[int, int]:
    """Of the fork server and the processes that read videos, by their ids, all of that server's
    process group."""
    nice = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            command = (folder / "cmdline").read_bytes()
            if fork_server.__name__.encode() in command and os.getpgid(int(folder.name)) == group:
                nice[int(folder.name)] = os.getpriority(os.PRIO_PROCESS, int(folder.name))
    return nice


def long_reader(group: int) -> int:
    """The process that reads a long video, stopped so that it does not end by itself."""
    usual = os.getpriority(os.PRIO_PROCESS, group)

    def readers() -> list[int]:
        return [pid for pid, nice in niceness(group).items() if nice > usual]

    until(readers)
    (reader,) = readers()
    os.kill(reader, signal.SIGSTOP)
    return reader


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


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
        until(lambda: set(niceness(server.running.pid).values()) == {own, min(own + 10, 19)})
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


def test_a_video_is_not_read_on_for_a_client_that_cancelled(
    server: Server, long_video: bytes
) -> None:
    inputs = GOOD | {"video_file_input": long_video}
    with connection(server.grpc) as stream:
        stream.send(BLS, "", [tensor(name, value) for name, value in inputs.items()])
        reader = long_reader(server.running.pid)
        stream.cancel()
    until(lambda: has_ended(reader))
    assert ask(server.grpc, BLS, GOOD).error == ""


def test_stop_with_the_same_id_ends_the_reading_of_a_video(
    server: Server, long_video: bytes
) -> None:
    """As dycoke_bls does it; clients of the ensemble may, whose steps hear of no cancellation."""
    inputs = GOOD | {"video_file_input": long_video}
    errors: SimpleQueue[Any] = SimpleQueue()

    def take(result: Any, error: Any) -> None:  # noqa: ARG001 (there is none)
        errors.put(error)

    with grpc.InferenceServerClient(server.grpc) as client:
        tensors = [tensor(name, value) for name, value in inputs.items()]
        name = uuid.uuid4().hex
        client.async_infer(PREPROCESSING, tensors, take, request_id=name)
        reader = long_reader(server.running.pid)
        stop = [tensor("text_input", ""), tensor("stop", True, "BOOL")]
        client.infer(PREPROCESSING, stop, request_id="another")
        assert not has_ended(reader)
        client.infer(PREPROCESSING, stop, request_id=name)
        error = errors.get(timeout=PATIENCE)
    assert error.status() == "StatusCode.CANCELLED"
    assert "the request was cancelled" in error.message()
    until(lambda: has_ended(reader))
