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
from tritonclient.grpc import service_pb2

from ..reliability.client import METHOD, message
from .sides import QUESTION, Outcome, Rounds, answer_loads

LARGEST = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]


def request(load: Rounds) -> bytes:
    """A serialised request, whose id is given anew each time."""
    serialised: bytes = message(
        load.model,
        text_input=QUESTION.encode(),
        video_bytes_input=load.video(),
        max_tokens=load.tokens,
        stream=True,
        return_num_output_tokens=True,
    ).SerializeToString()
    return serialised


async def ask(channel: Any, serialised: bytes) -> tuple[float, list[tuple[float, bytes]]]:
    """When the request was sent, and each response as it arrived."""

    async def one() -> AsyncIterator[bytes]:
        # Messages of a type, one after the other, are one message: the last id counts.
        named = service_pb2.ModelInferRequest(id=uuid.uuid4().hex).SerializeToString()
        yield serialised + named

    stream = channel.stream_stream(METHOD)  # no types: bytes as they are
    begun = time.perf_counter()
    return begun, [(time.perf_counter(), raw) async for raw in stream(one())]


def count_tokens(raw: bytes) -> int:
    """Tokens of a response. Raises RuntimeError for an error."""
    answer = service_pb2.ModelStreamInferResponse.FromString(raw)
    if answer.error_message:
        raise RuntimeError(answer.error_message)
    response = answer.infer_response
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "num_output_tokens":
            return int.from_bytes(content, "little")
    return 0


async def run(address: str, load: Rounds) -> Outcome:
    outcome = Outcome()
    serialised = request(load)
    async with grpc.aio.insecure_channel(address, options=LARGEST) as channel:
        await channel.channel_ready()
        for _ in range(load.rounds):
            begun = time.perf_counter()
            answers = await asyncio.gather(*(ask(channel, serialised) for _ in range(load.streams)))
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
