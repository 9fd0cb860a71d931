"""Cancelling on a server whose decode steps are slow enough to be counted."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dycoke_trt.bench.make_checkpoint import make_servable
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.cost.dims import LlmDims
from dycoke_trt.engines.cpu import build_cpu
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime.protocol import BLS, ENSEMBLE, LLM
from dycoke_trt.tests.support import until
from dycoke_trt.tests.triton_repo.conftest import SERVER_ENVIRONMENT, Server
from dycoke_trt.tests.triton_repo.streams import Reply, connection, metrics, take, tensor
from dycoke_trt.triton_repo.launcher import RunningServer, serving
from dycoke_trt.triton_repo.repository import write_repository

# About 20 ms per step on one core; the demo model's few ms end before a cancellation arrives.
SLOW = LlmDims(8, 768, 3072, 12, 2, 64, 512, True)
STEPS = 3  # within which a cancelled stream has to be gone
LONG = 400  # tokens: seconds


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp("slow")
    make_servable(folder / "model", SLOW)
    bundle = folder / "bundle"
    export_bundle(folder / "model", bundle, DyCokeConfig(), dtype="float32", max_frames=8)
    build_cpu(bundle, kv_tokens=2048, tokens_per_block=16, max_batch=4)
    repository = write_repository(bundle, folder / "repository", threads=1)
    with serving(repository, environment=SERVER_ENVIRONMENT) as running:
        yield running


def video_question(max_tokens: int = LONG) -> list[Any]:
    inputs = {
        "text_input": "What?",
        "video_bytes_input": np.zeros((1, 8, 32, 32, 3), np.uint8),
        "max_tokens": max_tokens,
        "stream": True,
    }
    return [tensor(name, value) for name, value in inputs.items()]


def llm_question() -> list[Any]:
    prompt = np.arange(20, dtype=np.int32)[None]
    return [
        tensor("input_ids", prompt, "INT32"),
        tensor("input_lengths", 20, "INT32"),
        tensor("request_output_len", LONG, "INT32"),
        tensor("streaming", True, "BOOL"),
    ]


def steps_now(server: RunningServer) -> float:
    """The count of steps at the moment when it is published, which is not after every step."""
    seen = metrics(server.metrics)["dycoke_steps_total"]
    until(lambda: metrics(server.metrics)["dycoke_steps_total"] != seen)
    return metrics(server.metrics)["dycoke_steps_total"]


def steps_to_freedom(server: RunningServer, before: float) -> float:
    """Steps until the pool is empty; the scheduler does not step while nothing is in flight."""
    until(lambda: metrics(server.metrics)["dycoke_kv_blocks_used"] == 0)
    return metrics(server.metrics)["dycoke_steps_total"] - before


@pytest.mark.parametrize("model", [ENSEMBLE, BLS, LLM])
def test_a_cancelled_stream_frees_its_blocks(slow: RunningServer, model: str) -> None:
    ended = metrics(slow.metrics)["dycoke_requests_total/cancelled"]
    with connection(slow.grpc) as stream:
        stream.send(model, uuid.uuid4().hex, llm_question() if model == LLM else video_question())
        for _ in range(3):
            _, _, error = next(stream.replies())
            assert error is None
        assert metrics(slow.metrics)["dycoke_kv_blocks_used"] > 0
        before = steps_now(slow)
        stream.cancel()
        assert steps_to_freedom(slow, before) <= STEPS
    assert metrics(slow.metrics)["dycoke_requests_total/cancelled"] == ended + 1


def test_stop_with_the_same_id_ends_a_stream(slow: RunningServer) -> None:
    name = uuid.uuid4().hex
    with connection(slow.grpc) as stream, connection(slow.grpc) as other:
        stream.send(ENSEMBLE, name, video_question())
        replies = stream.replies()
        _, result, error = next(replies)
        assert error is None
        stop = [t for t in llm_question() if t.name() != "input_ids"]
        before = steps_now(slow)
        other.send(LLM, name, [*stop, tensor("stop", True, "BOOL")])
        _, stopped, error = next(other.replies())
        assert error is None
        assert stopped.get_response().parameters["triton_final_response"].bool_param
        assert steps_to_freedom(slow, before) <= STEPS
        reply = Reply()
        while not reply.finals:
            take(reply, result)
            if not reply.finals:
                _, result, error = next(replies)
                assert error is None


@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.6, 0.9])
def test_the_twin_is_cancelled_at_any_stage(slow: RunningServer, part: float) -> None:
    """Cancelled at a part of the time to its first token: decoding, vision, queue or prefill."""
    begun = time.monotonic()
    with connection(slow.grpc) as stream:
        stream.send(BLS, "", video_question())
        _, _, error = next(stream.replies())
        assert error is None
        first = time.monotonic() - begun
        stream.cancel()
    until(lambda: metrics(slow.metrics)["dycoke_kv_blocks_used"] == 0)
    before = metrics(slow.metrics)
    with connection(slow.grpc) as stream:
        begun = time.monotonic()
        stream.send(BLS, "", video_question())
        until(lambda: time.monotonic() - begun >= part * first)
        stream.cancel()
    # A request that follows is answered, after which nothing of the cancelled one is left.
    with connection(slow.grpc) as stream:
        text = [t for t in video_question() if t.name() not in ("video_bytes_input", "max_tokens")]
        stream.send(BLS, "", [*text, tensor("max_tokens", 2)])
        reply = Reply()
        for _, result, error in stream.replies():
            assert error is None
            take(reply, result)
            if reply.finals:
                break
    until(lambda: metrics(slow.metrics)["dycoke_kv_blocks_used"] == 0)
    after = metrics(slow.metrics)["dycoke_tokens_total"]
    assert after - before["dycoke_tokens_total"] <= 2 + 2 * STEPS


def test_a_waiting_request_is_cancelled_too(slow: RunningServer) -> None:
    """The pool holds three long answers; one more waits, and leaves the line when cancelled."""
    with connection(slow.grpc) as busy, connection(slow.grpc) as waiting:
        for _ in range(3):
            busy.send(BLS, "", video_question())
        until(lambda: metrics(slow.metrics)["dycoke_kv_blocks_used"] > 0)
        waiting.send(BLS, "", video_question())
        until(lambda: metrics(slow.metrics)["dycoke_requests_waiting"] == 1)
        waiting.cancel()
        until(lambda: metrics(slow.metrics)["dycoke_requests_waiting"] == 0)
        assert metrics(slow.metrics)["dycoke_kv_blocks_used"] > 0
        busy.cancel()
        until(lambda: metrics(slow.metrics)["dycoke_kv_blocks_used"] == 0)


def test_many_cancelled_streams_leave_the_twin_in_order(server: Server) -> None:
    """Short streams that end while others are asked whether they were cancelled. Without
    triton_repo/models/spent.py the model's process died here in one of two runs."""

    def cancel_some(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(40):
            inputs = {"text_input": "Which colour?", "max_tokens": draw.choice([1, 3, LONG])}
            with connection(server.grpc) as stream:
                stream.send(BLS, "", [tensor(*item) for item in {**inputs, "stream": True}.items()])
                for _ in range(draw.randrange(3)):
                    _, result, error = next(stream.replies())
                    assert error is None
                    if result.get_response().parameters["triton_final_response"].bool_param:
                        break
                stream.cancel()

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(cancel_some, range(12)))
    server.running.wait(timeout=0)  # raises if a model died
    # Answered after all that came before, whose clients are gone.
    with connection(server.grpc) as stream:
        stream.send(BLS, "", [tensor("text_input", "Which colour?"), tensor("max_tokens", 1)])
        assert next(stream.replies())[2] is None
    until(lambda: metrics(server.metrics)["dycoke_kv_blocks_used"] == 0)


KILLED_CLIENT = """
import sys
from dycoke_trt.tests.triton_repo.streams import connection
from dycoke_trt.tests.triton_repo.test_cancel import video_question
with connection(sys.argv[1]) as stream:
    stream.send(sys.argv[2], "killed", video_question(200))
    next(stream.replies())
    print("begun", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("model", [ENSEMBLE, BLS])
def test_blocks_of_a_killed_client_are_free_when_its_answer_ends(
    slow: RunningServer, model: str
) -> None:
    """No cancellation arrives from it, so its answer may run to its end, but not longer."""
    command = [sys.executable, "-c", KILLED_CLIENT, slow.grpc, model]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "begun\n"
        before = metrics(slow.metrics)
        client.kill()
    until(lambda: metrics(slow.metrics)["dycoke_kv_blocks_used"] == 0)
    after = metrics(slow.metrics)
    assert after["dycoke_tokens_total"] - before["dycoke_tokens_total"] <= 200
    ended = "dycoke_requests_total/length", "dycoke_requests_total/cancelled"
    assert sum(after[name] - before[name] for name in ended) == 1
