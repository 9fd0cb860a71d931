"""Requests to a real server, as hand-written client code would send them."""

from __future__ import annotations

import json
import queue
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from dycoke_trt.runtime.protocol import CLIENT_INPUTS, CLIENT_OUTPUTS
from numpy.typing import NDArray

DTYPES = {spec.name: spec.dtype for spec in CLIENT_INPUTS}
NUMPY = {"INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_, "UINT64": np.uint64}
PATIENCE = 60.0  # seconds until a stream that says nothing has failed


@dataclass
class Reply:
    """What one stream brought: text deltas in order, token counts, finals, or an error."""

    pieces: list[str] = field(default_factory=list)
    output_tokens: int = 0
    input_tokens: int | None = None
    finals: int = 0
    error: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def tensor(name: str, value: Any, dtype: str = "") -> grpc.InferInput:
    """A request tensor; scalars and lists get the batch dimension."""
    dtype = dtype or DTYPES[name]
    if isinstance(value, np.ndarray):
        array: NDArray[Any] = value
    elif dtype == "BYTES":
        values = value if isinstance(value, list) else [value]
        raw = [v.encode() if isinstance(v, str) else v for v in values]
        array = np.empty((1, len(raw)), np.object_)
        array[0] = raw
    else:
        array = np.array([[value]], NUMPY[dtype])
    made = grpc.InferInput(name, list(array.shape), dtype)
    made.set_data_from_numpy(array)
    return made


class Connection:
    """One gRPC stream; requests may overlap, replies are told apart by their ids."""

    def __init__(self, address: str) -> None:
        self.client = grpc.InferenceServerClient(address)
        self._arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()
        # The header triton_grpc_error, which would add the status, can crash a server 2.51.
        self.client.start_stream(lambda result, error: self._arrived.put((result, error)))

    def send(self, model: str, request_id: str, tensors: list[Any], **options: Any) -> None:
        self.client.async_stream_infer(
            model, tensors, request_id=request_id, enable_empty_final_response=True, **options
        )

    def replies(self) -> Iterator[tuple[str, Any, Any]]:
        """(request id, result, error) as they arrive."""
        while True:
            result, error = self._arrived.get(timeout=PATIENCE)
            yield ("" if result is None else result.get_response().id), result, error

    def arrived(self) -> int:
        """Replies that came and were not looked at yet."""
        return self._arrived.qsize()

    def cancel(self) -> None:
        self.client.stop_stream(cancel_requests=True)

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()


@contextmanager
def connection(address: str) -> Iterator[Connection]:
    opened = Connection(address)
    try:
        yield opened
    finally:
        opened.close()


def ask(
    address: str,
    model: str,
    inputs: dict[str, Any] | list[grpc.InferInput],
    *,
    request_id: str | None = None,
    on_piece: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Reply:
    """One request to its end. request_id: None draws one, "" sends none."""
    tensors = inputs
    if isinstance(inputs, dict):
        tensors = [tensor(name, value) for name, value in inputs.items()]
    reply = Reply()
    with connection(address) as stream:
        stream.send(
            model, uuid.uuid4().hex if request_id is None else request_id, tensors, **options
        )
        for _, result, error in stream.replies():
            if error is not None:
                reply.error = error.message()
                return reply
            take(reply, result)
            if reply.pieces:
                on_piece(reply.pieces[-1])
            if reply.finals:
                return reply
    raise AssertionError("unreachable")


def generate(address: str, model: str, body: dict[str, Any]) -> tuple[int, str]:
    """HTTP's generate: status and text, of the answer or of the error."""
    request = urllib.request.Request(
        f"http://{address}/v2/models/{model}/generate", json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)["text_output"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]


def take(reply: Reply, result: Any) -> None:
    """Adds one response to a reply."""
    values = {spec.name: result.as_numpy(spec.name) for spec in CLIENT_OUTPUTS}
    if values["text_output"] is not None:
        assert values["text_output"].shape == (1, 1)
        reply.pieces.append(values["text_output"].item().decode())
    if values["num_output_tokens"] is not None:
        reply.output_tokens += values["num_output_tokens"].item()
    if values["num_input_tokens"] is not None:
        reply.input_tokens = values["num_input_tokens"].item()
    reply.finals += result.get_response().parameters["triton_final_response"].bool_param


def metrics(address: str) -> dict[str, float]:
    """Our metrics by name, with a label beside the model's as name/value."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("dycoke")]
    found = {}
    for line in lines:
        name, value = line.rsplit(" ", 1)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
        labels.pop("model")
        found["/".join([name.partition("{")[0], *labels.values()])] = float(value)
    return found
