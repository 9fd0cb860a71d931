"""Requests as any client may send them, on gRPC's asyncio: also wrong ones, ended in every way."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from ....runtime.protocol import ANSWER_INPUTS, CLIENT_INPUTS, LLM, PROMPT

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
PATIENCE = 120.0  # seconds after which a stream that says nothing hangs
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # each channel has a connection of its own
]
_DTYPES = {spec.name: spec.dtype for spec in (*CLIENT_INPUTS, *PROMPT, *ANSWER_INPUTS.values())} | {
    "stop": "BOOL"
}
_NUMPY = {
    "INT32": np.int32,
    "FP32": np.float32,
    "BOOL": np.bool_,
    "UINT64": np.uint64,
    "UINT8": np.uint8,
}


@dataclass
class Answer:
    """What a stream brought. times: seconds from its begin to each response with text or tokens;
    seconds: to its end; error: of Triton or of gRPC, empty where there was none."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = False
    error: str = ""

    @property
    def content(self) -> tuple[str, tuple[int, ...]]:
        return self.text, tuple(self.tokens)


def message(model: str, outputs: Sequence[str] = (), **values: Any) -> Any:
    """A request. values: bytes, lists of bytes, arrays or numbers; these get a batch dimension."""
    made = service_pb2.ModelInferRequest(model_name=model, id=uuid.uuid4().hex)
    made.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, value in values.items():
        add_input(made, name, _DTYPES[name], value)
    for name in outputs:
        made.outputs.add(name=name)
    return made


def add_input(made: Any, name: str, dtype: str, value: Any) -> None:
    if dtype == "BYTES":
        texts = value if isinstance(value, list) else [value]
        raw = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        shape = [1, len(texts)]
    else:
        array = value if isinstance(value, np.ndarray) else np.array([[value]], _NUMPY[dtype])
        raw, shape = array.tobytes(), list(array.shape)
    made.inputs.add(name=name, datatype=dtype, shape=shape)
    made.raw_input_contents.append(raw)


def tokens_wanted(prompt: Sequence[int], length: int, **options: Any) -> Any:
    """A request to the LLM step alone: `length` tokens, whatever they are."""
    values = {
        "input_ids": np.array([prompt], np.int32),
        "input_lengths": len(prompt),
        "request_output_len": length,
        "streaming": True,
        **options,
    }
    return message(LLM, **values)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        yield channel


def open_stream(channel: Any) -> Any:
    """A call of ModelStreamInfer, to write requests to and to read responses from."""
    return channel.stream_stream(
        METHOD,
        request_serializer=lambda made: made.SerializeToString(),
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )()


async def ask(
    channel: Any,
    request: Any,
    *,
    cancel_if: Callable[[Answer], bool] = lambda _: False,
    on_piece: Callable[[Answer], None] = lambda _: None,
    cancel_after: float | None = None,
    patience: float = PATIENCE,
) -> Answer:
    """One stream to its end. cancel_if: looked at before the first response, after each, and after
    the last; where it says so the stream is cancelled, as it is after `cancel_after` seconds. Never
    raises for what a server does."""
    answer, begun = Answer(), time.perf_counter()
    call = open_stream(channel)
    try:
        async with asyncio.timeout(patience if cancel_after is None else cancel_after):
            await call.write(request)
            while not cancel_if(answer):
                if answer.complete or answer.error:
                    await call.done_writing()  # half-close: docs/client.md says why
                    while await call.read() is not grpc.aio.EOF:
                        pass
                    break
                response = await call.read()
                if response is grpc.aio.EOF:
                    answer.error = answer.error or f"the stream ended: {await call.code()}"
                    break
                _take(answer, response, time.perf_counter() - begun)
                on_piece(answer)
            else:
                call.cancel()
    except grpc.aio.AioRpcError as error:
        answer.error = f"{error.code().name}: {error.details()}"
    except TimeoutError:
        call.cancel()
        if cancel_after is None:
            inputs = ", ".join(tensor.name for tensor in request.inputs)
            answer.error = (
                f"HANGS: no end within {patience:.0f} s; {len(answer.times)} responses of "
                f"{request.model_name} to {inputs}"
            )
    answer.seconds = time.perf_counter() - begun
    return answer


def _take(answer: Answer, response: Any, at: float) -> None:
    if response.error_message:
        answer.error = response.error_message
        return
    result = response.infer_response
    for output, raw in zip(result.outputs, result.raw_output_contents, strict=False):
        if output.name == "text_output":
            answer.text += raw[4:].decode()
            answer.times.append(at)
        elif output.name == "output_ids":
            answer.tokens += np.frombuffer(raw, np.int32).tolist()
            answer.times.append(at)
    answer.complete = result.parameters["triton_final_response"].bool_param


async def gather(address: str, requests: Sequence[Any], width: int, **options: Any) -> list[Answer]:
    """All requests, `width` at a time, each worker with a connection of its own; in their order."""
    answers: dict[int, Answer] = {}
    waiting = iter(enumerate(requests))

    async def work() -> None:
        async with connected(address) as channel:
            for number, request in waiting:
                answers[number] = await ask(channel, request, **options)

    await asyncio.gather(*(work() for _ in range(width)))
    return [answers[number] for number in range(len(requests))]


def one(address: str, request: Any, **options: Any) -> Answer:
    """One request from code that is not asynchronous."""
    return asyncio.run(gather(address, [request], 1, **options))[0]


def renewed(request: Any) -> Any:
    """The same request with a fresh id."""
    made = service_pb2.ModelInferRequest()
    made.CopyFrom(request)
    made.id = uuid.uuid4().hex
    return made
