"""More requests than a server can hold: the line is bounded, and who is refused is told so."""

from __future__ import annotations

import re
import threading
import uuid
from collections import Counter
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from dycoke_trt.runtime.limits import RequestLimits
from dycoke_trt.runtime.protocol import BLS, LLM, PREPROCESSING
from dycoke_trt.tests.support import until
from dycoke_trt.tests.triton_repo.conftest import Server
from dycoke_trt.tests.triton_repo.streams import PATIENCE, ask, connection, metrics, tensor
from dycoke_trt.tests.triton_repo.test_refusals import GOOD, SAMPLE

BATCH = 16
MOST = RequestLimits().max_queue + BATCH  # what the server's fixture was built for
MANY = 20  # beyond that


def test_the_twin_holds_a_batch_and_a_line(server: Server) -> None:
    wild = {"text_input": SAMPLE.question, "temperature": 1e3, "top_k": 0, "seed": 7}
    tensors = [tensor(k, v) for k, v in (wild | {"max_tokens": 1000, "stream": True}).items()]
    with connection(server.grpc) as stream:
        for _ in range(MOST + MANY):
            stream.send(BLS, "", tensors)
        refused = next(error for _, _, error in stream.replies() if error is not None)
        assert refused.message() == (
            f"{MOST} requests are in dycoke_bls already (a full batch and the server's "
            "--max-queue); try again later"
        )
        until(lambda: metrics(server.metrics)["dycoke_requests_running"] == BATCH)
        assert metrics(server.metrics)["dycoke_requests_waiting"] <= MOST - BATCH
        stream.cancel()
    until(lambda: metrics(server.metrics)["dycoke_kv_blocks_used"] == 0)
    until(lambda: not ask(server.grpc, BLS, GOOD).error)


def test_the_llm_step_refuses_beyond_its_line(server: Server) -> None:
    """Asked directly, as the ensemble does; its own requests keep their places."""
    tensors = [
        tensor("input_ids", np.full((1, 20), 3, np.int32), "INT32"),
        tensor("input_lengths", 20, "INT32"),
        tensor("request_output_len", 2000, "INT32"),
        tensor("streaming", True, "BOOL"),
    ]
    with connection(server.grpc) as stream:
        for _ in range(MOST + MANY):
            stream.send(LLM, uuid.uuid4().hex, tensors)
        for _, _, error in stream.replies():
            if error is not None:
                assert "requests wait already (limit 64); try again later" in error.message()
                break
        stream.cancel()
    until(lambda: metrics(server.metrics)["dycoke_kv_blocks_used"] == 0)


def test_a_full_line_of_the_server_is_unavailable_and_no_bad_input(server: Server) -> None:
    """Of the steps whose line is the server's: its batcher has the bound, and the code arrives.

    Behind it the step holds as many itself; which of the two is full first is a matter of speed.
    """
    count = 4 * MOST
    outcomes: Counter[str] = Counter()
    done = threading.Semaphore(0)

    def take(result: Any, error: Any) -> None:
        refusal = "" if result is not None else f"{error.status()} {error.message()}"
        outcomes[re.sub(r"\[request id: \w+\] ", "", refusal)] += 1
        done.release()

    tensors = [tensor(name, value) for name, value in GOOD.items()]
    with grpc.InferenceServerClient(server.grpc) as client:
        for _ in range(count):
            client.async_infer(PREPROCESSING, tensors, take, request_id=uuid.uuid4().hex)
        for _ in range(count):
            assert done.acquire(timeout=PATIENCE)
    batcher = "StatusCode.UNAVAILABLE Exceeds maximum queue size"
    step = (
        f"StatusCode.UNAVAILABLE {MOST} requests are in {PREPROCESSING} already (a full batch and "
        "the server's --max-queue); try again later"
    )
    assert set(outcomes) - {step} == {"", batcher}
    assert outcomes[""] >= MOST
