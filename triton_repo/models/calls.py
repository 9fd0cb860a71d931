"""Requests from one model to another: answers of the LLM step, and the end of a request."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ...runtime.protocol import LLM, PREPROCESSING, STOP
from .spent import SPENT

Responses = Generator[Any, None, None]


def generate(request_id: str, inputs: list[Any], outputs: list[str]) -> Responses:
    """The LLM step's responses to a request, as they arrive.

    Closed before the last one, it ends the generation and reads what is still on its way: the
    server forgets only responses that were read to their end.
    """
    request = pb_utils.InferenceRequest(
        model_name=LLM, request_id=request_id, requested_output_names=outputs, inputs=inputs
    )
    responses = request.exec(decoupled=True)
    ended = False
    try:
        yield from responses
        ended = True
    finally:
        if not ended:
            stop_generation(request_id)
            for _ in responses:
                pass
        SPENT.keep(responses)


def stop_generation(request_id: str) -> None:
    """Ends the request with that id, as TensorRT-LLM's backend takes it too: `stop` beside the
    inputs that its configuration requires. Does nothing where none is in flight."""
    one = np.ones((1, 1), np.int32)
    inputs = {
        STOP.name: np.ones((1, 1), np.bool_),
        "input_ids": one,
        "input_lengths": one,
        "request_output_len": one,
    }
    request = pb_utils.InferenceRequest(
        model_name=LLM,
        request_id=request_id,
        requested_output_names=["output_ids", "sequence_length"],
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
    )
    # Answered by a final flag without tensors: nothing that would have to be kept.
    for response in request.exec(decoupled=True):
        if response.has_error():
            pb_utils.Logger.log_error(f"stop of {request_id!r}: {response.error().message()}")


def stop_preprocessing(request_id: str) -> None:
    """Ends the reading of a video for the request with that id. Does nothing where none is read."""
    inputs = {
        STOP.name: np.ones((1, 1), np.bool_),
        "text_input": np.array([[b""]], np.object_),
    }
    response = pb_utils.InferenceRequest(
        model_name=PREPROCESSING,
        request_id=request_id,
        requested_output_names=["input_ids"],
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
    ).exec()
    if response.has_error():
        pb_utils.Logger.log_error(f"stop of {request_id!r}: {response.error().message()}")
