"""What streams in flight see when the server ends, on purpose or because a model died."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.protocol import BLS, LLM
from dycoke_trt.tests.support import demo_bundle, until
from dycoke_trt.tests.triton_repo.conftest import SERVER_ENVIRONMENT
from dycoke_trt.tests.triton_repo.streams import ask, connection, metrics, tensor
from dycoke_trt.triton_repo.health import is_ready
from dycoke_trt.triton_repo.launcher import RunningServer, serving
from dycoke_trt.triton_repo.processes import stubs_of
from dycoke_trt.triton_repo.repository import write_repository

SHORT, LONG = 20, 3500  # tokens: far less, and far more, than the server waits


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = demo_bundle(DyCokeConfig(k=0.5, l=2, p=0.5))
    return write_repository(bundle, tmp_path_factory.mktemp("end") / "models", threads=1)


def inputs(length: int) -> list[Any]:
    prompt = np.arange(1, 9, dtype=np.int32)[None]
    return [
        tensor("input_ids", prompt, "INT32"),
        tensor("input_lengths", 8, "INT32"),
        tensor("request_output_len", length, "INT32"),
        tensor("streaming", True, "BOOL"),
    ]


def generate(address: str, length: int, begun: Callable[[], Any]) -> tuple[int, str]:
    """Generates `length` tokens without an end; `begun` is called at the first. Tokens, error."""
    tokens = 0
    with connection(address) as stream:
        stream.send(LLM, uuid.uuid4().hex, inputs(length))
        for _, result, error in stream.replies():
            if error is not None:
                return tokens, error.message() or str(error)
            if tokens == 0:
                begun()
            tokens += result.as_numpy("sequence_length").item()
            if result.get_response().parameters["triton_final_response"].bool_param:
                return tokens, ""
    raise AssertionError("unreachable")


def end_while_streaming(
    repository: Path,
    lengths: list[int],
    end: Callable[[RunningServer], None],
    before: Callable[[RunningServer], None] = lambda _: None,
    **options: Any,
) -> list[tuple[int, str]]:
    """Ends the server once every stream has its first token; returns what each stream saw."""
    with ThreadPoolExecutor(len(lengths)) as threads:
        started: SimpleQueue[None] = SimpleQueue()
        with serving(repository, environment=SERVER_ENVIRONMENT, **options) as server:
            before(server)
            streams = [
                threads.submit(generate, server.grpc, n, lambda: started.put(None)) for n in lengths
            ]
            for _ in streams:
                started.get(timeout=60)
            end(server)
        return [stream.result(timeout=60) for stream in streams]


class Proxy:
    """A connection to a server that can fall silent: no byte passes any more, and no end of it."""

    def __init__(self, address: str) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        host, port = address.split(":")
        self._ends: list[socket.socket] = []
        self._silent, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._forward, args=(host, int(port)))
        self._thread.start()

    def fall_silent(self) -> None:
        self._wake.send(b"x")
        self._thread.join()

    def close(self) -> None:
        for end in (*self._ends, self._listening, self._silent, self._wake):
            end.close()

    def _forward(self, host: str, port: int) -> None:
        self._ends = [self._listening.accept()[0], socket.create_connection((host, port))]
        while True:
            ready, _, _ = select.select([*self._ends, self._silent], [], [])
            if self._silent in ready:
                return
            for end in ready:
                self._ends[1 - self._ends.index(end)].sendall(end.recv(65536))


def lose_a_peer(server: RunningServer) -> None:
    """A client whose machine is gone: what it asked for is given up, before it is complete."""
    proxy = Proxy(server.grpc)
    with connection(proxy.address) as stream:
        stream.send(LLM, uuid.uuid4().hex, inputs(LONG))
        next(iter(stream.replies()))
        proxy.fall_silent()
        until(lambda: metrics(server.metrics)["dycoke_requests_total/cancelled"] == 1)
        assert metrics(server.metrics)["dycoke_kv_blocks_used"] == 0
        proxy.close()


def test_a_server_that_is_stopped_lets_streams_end(repository: Path) -> None:
    short, long = end_while_streaming(
        repository,
        [SHORT, LONG],
        lambda _: None,
        before=lose_a_peer,
        grace=3,
        # Of the default only the times are others.
        extra=["--grpc-keepalive-time=1000", "--grpc-keepalive-timeout=1000"],
    )
    assert short == (SHORT, "")
    tokens, error = long
    assert 0 < tokens < LONG
    assert "the server ended before the answer was complete" in error


def test_streams_of_the_twin_end_with_an_error_of_their_own(repository: Path) -> None:
    """An error after tokens, through a call from model to model, which servers before 2.57 lose."""
    # Drawn from all tokens evenly: 499 until the one that ends an answer.
    wild = {"text_input": "Tell me all of it", "temperature": 1e3, "top_k": 0, "seed": 3}
    begun = [threading.Event() for _ in range(3)]
    with ThreadPoolExecutor(len(begun)) as threads:
        with serving(repository, environment=SERVER_ENVIRONMENT, grace=0) as server:
            streams = [
                threads.submit(
                    ask,
                    server.grpc,
                    BLS,
                    {**wild, "stream": True, "max_tokens": LONG},
                    on_piece=lambda _, event=event: event.set(),  # type: ignore[misc]
                )
                for event in begun
            ]
            assert all(event.wait(60) for event in begun)
        replies = [stream.result(timeout=60) for stream in streams]
    for reply in replies:
        assert "the server ended before the answer was complete" in reply.error


def test_a_model_that_dies_is_an_error_and_no_hang(repository: Path) -> None:
    def kill(server: RunningServer) -> None:
        (llm,) = (stub for stub in stubs_of(server.pid, repository) if stub.model == LLM)
        os.kill(llm.pid, signal.SIGKILL)
        with pytest.raises(DyCokeError, match=r"model tensorrt_llm died \(signal 9\)"):
            server.wait(60)
        assert not is_ready(server.http)

    ((tokens, error),) = end_while_streaming(repository, [LONG], kill)
    assert 0 < tokens < LONG
    assert error
