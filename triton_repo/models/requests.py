"""What all models do with Triton's requests: read tensors, refuse what they do not know, fail well.

Errors of a user become INVALID_ARGUMENT with the message as it is; anything else is a bug, goes to
the server's log with its trace, and reaches the client as INTERNAL.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from ...core.errors import DyCokeError, UnavailableError
from ...runtime.protocol import ERROR, ERRORS_AS_OUTPUT


class CancelledError(Exception):
    """The client does not wait any more."""

    def __init__(self) -> None:
        super().__init__("the request was cancelled")


class StepError(Exception):
    """An error that a called model answered with; passed on as it is."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.error = error


def parameters(args: Mapping[str, str]) -> dict[str, str]:
    """Parameters of the model's config.pbtxt; args: what Triton gives `initialize`."""
    given = json.loads(args["model_config"])["parameters"]
    return {name: value["string_value"] for name, value in given.items()}


def array(request: Any, name: str) -> NDArray[Any] | None:
    """An input tensor, or None where it was left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def scalar(request: Any, name: str) -> Any:
    """The value of an input tensor of one element, or None where it was left out."""
    value = array(request, name)
    return None if value is None else single(name, value)


def single(name: str, value: NDArray[Any]) -> Any:
    """The only element of a tensor. Raises DyCokeError for none or several."""
    if value.size != 1:
        raise DyCokeError(f"{name}: shape {list(value.shape)}; allowed: [1, 1]")
    return value.reshape(-1)[0].item() if value.dtype != object else value.reshape(-1)[0]


def check_parameters(request: Any) -> None:
    """Refuses request parameters: no model has any, and none may be ignored in silence.

    `id` is no option: older servers pass on the id of an HTTP generate request that way.
    """
    names = json.loads(request.parameters() or "{}")
    given = [name for name in names if name != "id" and not name.startswith("triton_")]
    if given:
        raise DyCokeError(f"{given[0]}: an unknown request parameter; options are input tensors")


def tensors(values: Mapping[str, NDArray[Any]]) -> list[Any]:
    return [pb_utils.Tensor(name, value) for name, value in values.items()]


def text_tensor(name: str, text: str) -> Any:
    """BYTES [1, 1]."""
    return pb_utils.Tensor(name, np.array([[text.encode()]], np.object_))


def triton_error(error: BaseException) -> Any:
    """The TritonError for an exception; what is not a user's error is logged with its trace."""
    if isinstance(error, StepError):
        return error.error
    if isinstance(error, CancelledError):
        return pb_utils.TritonError(str(error), pb_utils.TritonError.CANCELLED)
    if isinstance(error, UnavailableError):
        return pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)
    if isinstance(error, DyCokeError):
        return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    return pb_utils.TritonError(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)


def error_response(error: BaseException, *, as_output: bool = False) -> Any:
    return failure(triton_error(error), as_output=as_output)


def failure(error: Any, *, as_output: bool) -> Any:
    """A response with a TritonError, or with its code and message as a tensor (protocol.ERROR)."""
    if not as_output:
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
    told = np.array([[error.code().name.encode(), error.message().encode()]], np.object_)
    return pb_utils.InferenceResponse([pb_utils.Tensor(ERROR.name, told)])


def output_error(outputs: Sequence[Any]) -> Any:
    """The TritonError that `failure` made a tensor of; None where there is none among outputs."""
    for tensor in outputs:
        if tensor.name() == ERROR.name:
            code, message = (part.decode() for part in tensor.as_numpy().reshape(-1))
            return pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    return None


def wants_errors_as_output(request: Any) -> bool:
    value = array(request, ERRORS_AS_OUTPUT.name)
    return value is not None and bool(value.any())
