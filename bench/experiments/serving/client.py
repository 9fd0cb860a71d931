"""The server's side of the serving benchmark: a client that costs little, on gRPC's asyncio.

It shares the machine with the server, so while tokens arrive it only notes the time; messages are
parsed after each round.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from ....runtime.protocol import CLIENT_INPUTS
from .load import QUESTION, Load, Outcome, answer_loads

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
LARGEST = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
_DTYPES = {spec.name: spec.dtype for spec in CLIENT_INPUTS}


def request(load: Load) -> bytes:
    """A serialised request, but for its id."""
    made = service_pb2.ModelInferRequest(model_name=load.model)
    question = QUESTION.encode()
    values: dict[str, tuple[list[int], bytes]] = {
        "text_input": ([1, 1], len(question).to_bytes(4, "little") + question),
        "video_bytes_input": (list(load.video().shape), load.video().tobytes()),
        "max_tokens": ([1, 1], np.int32(load.tokens).tobytes()),
        "stream": ([1, 1], b"\1"),
        "return_num_output_tokens": ([1, 1], b"\1"),
    }
    for name, (shape, raw) in values.items():
        made.inputs.add(name=name, datatype=_DTYPES[name], shape=shape)
        made.raw_input_contents.append(raw)
    serialised: bytes = made.SerializeToString()
    return serialised


async def ask(channel: Any, message: bytes) -> tuple[float, list[tuple[float, bytes]]]:
    """When the request was sent, and each response as it arrived."""

    async def one() -> AsyncIterator[bytes]:
        # Messages of a type, one after the other, are one message: the id is added.
        named = service_pb2.ModelInferRequest(id=uuid.uuid4().hex).SerializeToString()
        yield message + named

    stream = channel.stream_stream(METHOD)  # no types: bytes as they are
    begun = time.perf_counter()
    return begun, [(time.perf_counter(), raw) async for raw in stream(one())]


def count_tokens(raw: bytes) -> int:
    """Tokens of a response. Raises RuntimeError for an error."""
    message = service_pb2.ModelStreamInferResponse.FromString(raw)
    if message.error_message:
        raise RuntimeError(message.error_message)
    response = message.infer_response
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "num_output_tokens":
            return int.from_bytes(content, "little")
    return 0


async def run(address: str, load: Load) -> Outcome:
    outcome = Outcome()
    message = request(load)
    async with grpc.aio.insecure_channel(address, options=LARGEST) as channel:
        await channel.channel_ready()
        for _ in range(load.rounds):
            begun = time.perf_counter()
            answers = await asyncio.gather(*(ask(channel, message) for _ in range(load.streams)))
            outcome.seconds += time.perf_counter() - begun
            for sent, arrived in answers:
                outcome.add(sent, [(at, count_tokens(raw)) for at, raw in arrived])
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    address = parser.parse_args().address
    answer_loads(lambda load: asyncio.run(run(address, load)))


if __name__ == "__main__":
    main()
