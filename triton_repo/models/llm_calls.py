"""Requests from one model to the LLM step."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

from ...runtime.protocol import LLM


def stop_generation(request_id: str) -> None:
    """Ends the request with that id, as TensorRT-LLM's backend takes it too: `stop` beside the
    inputs that its configuration requires. Does nothing where none is in flight."""
    one = np.ones((1, 1), np.int32)
    inputs = {
        "stop": np.ones((1, 1), np.bool_),
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
    for response in request.exec(decoupled=True):
        if response.has_error():
            pb_utils.Logger.log_error(f"stop of {request_id!r}: {response.error().message()}")
