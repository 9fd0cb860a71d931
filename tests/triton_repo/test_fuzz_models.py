"""Every model asked directly, with tensors that no client of ours would send.

Whatever comes, a model answers, or refuses as INVALID_ARGUMENT and names the input; INTERNAL would
be a bug. The server's own checks come first, so some refusals are its.
"""

from __future__ import annotations

import re
import uuid
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as grpc
from dycoke_trt.runtime import protocol as p
from dycoke_trt.tests.triton_repo.conftest import Server
from dycoke_trt.tests.triton_repo.streams import PATIENCE, ask, connection, metrics
from dycoke_trt.tests.triton_repo.test_refusals import GOOD, MP4
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

EXAMPLES = 120  # per model
NUMPY: dict[str, Any] = {
    "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_, "UINT64": np.uint64,
    "UINT8": np.uint8, "INT64": np.int64, "FP16": np.float16, "BYTES": np.object_,
}  # fmt: skip
# What Triton says of a bug in a model, as triton_repo/models/requests.py words it.
BUG = re.compile(r"\b[A-Z]\w*(Error|Exception|Exit)\b|model failed")


class Tensor(NamedTuple):
    """An input as it is sent: raw bytes that need not fit shape or type."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes

    @classmethod
    def of(cls, value: Any, dtype: str) -> Tensor:
        array = value if isinstance(value, np.ndarray) else np.array([[value]], NUMPY[dtype])
        made = grpc.InferInput("x", list(array.shape), dtype)
        made.set_data_from_numpy(array)
        return cls(dtype, array.shape, made._raw_content)

    def named(self, name: str) -> grpc.InferInput:
        made = grpc.InferInput(name, list(self.shape), self.dtype)
        made._raw_content = self.raw
        return made


def _int32(values: Any) -> Tensor:
    return Tensor.of(np.array(values, np.int32), "INT32")


PROMPT = {
    "input_ids": _int32([[3, 4, 5]]),
    "input_lengths": _int32([[3]]),
    "request_output_len": _int32([[2]]),
}
QUESTION = {
    "text_input": Tensor.of(GOOD["text_input"].encode(), "BYTES"),
    "video_file_input": Tensor.of(MP4, "BYTES"),
    "num_frames": _int32([[8]]),
    "max_tokens": _int32([[2]]),
}
TOKENS = {"output_ids": _int32([[[5, 6, 7]]]), "sequence_length": _int32([[3]])}
VALUES: dict[str, list[Any]] = {
    "INT32": [-(2**31), -1, 0, 1, 7, 2**31 - 1],
    "FP32": [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-45, 1e-39, 0.5, 1.0, 3e38],
    "FP16": [np.nan, np.inf, 0.0, 65504.0],
    "UINT64": [0, 1, 2**63, 2**64 - 1],
    "INT64": [-(2**63), 0, 2**63 - 1],
    "UINT8": [0, 255],
    "BOOL": [False, True],
    "BYTES": [b"", b"\xff\xfe", b"\0", b"a" * 300, b"data:", b"data:;base64,", b"\xe9", b"word"],
}
# A batch of none is never answered: the server's Python backend forgets it (docs/serving.md).
SIZES = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5]), max_size=6).filter(lambda s: s[:1] != [0])


@st.composite
def strange(draw: st.DrawFn, spec: Tensor) -> Tensor:
    """Another value, shape, type or raw content than that of an input's declaration."""
    kind = draw(st.sampled_from(["value", "value", "value", "shape", "dtype", "raw"]))
    dtype, shape = spec.dtype, spec.shape
    if kind == "dtype":
        dtype = draw(st.sampled_from(sorted(VALUES)))
    if kind in ("shape", "dtype"):
        shape = tuple(draw(SIZES))
    else:
        shape = (1, *(draw(st.integers(0, 3)) if size < 0 else size for size in shape[1:]))
    array = np.full(shape, draw(st.sampled_from(VALUES[dtype])), NUMPY[dtype])
    tensor = Tensor.of(array, dtype)
    if kind == "raw":
        raw = draw(st.sampled_from([b"", b"\x01", tensor.raw[:-1], tensor.raw + b"\0"]))
        # A string of raw contents begins with its length, which may be a lie.
        raw = draw(st.sampled_from([raw, b"\xff\xff\xff\xff", b"\x05\0\0\0ab"]))
        tensor = tensor._replace(raw=raw)
    return tensor


def _specs(address: str, model: str) -> dict[str, Tensor]:
    """Inputs as the server declares them; -1 is a dimension of any size."""
    with grpc.InferenceServerClient(address) as client:
        inputs = client.get_model_metadata(model).inputs
    return {spec.name: Tensor(spec.datatype, tuple(spec.shape), b"") for spec in inputs}


def _unary(address: str, model: str, inputs: list[Any]) -> tuple[str, str]:
    """(status, message) of an error, or two empty strings."""
    with grpc.InferenceServerClient(address) as client:
        try:
            client.infer(model, inputs, request_id=uuid.uuid4().hex, client_timeout=PATIENCE)
        except InferenceServerException as error:
            return str(error.status()).rpartition(".")[2], str(error.message())
    return "", ""


def _stream(address: str, model: str, inputs: list[Any]) -> tuple[str, str]:
    """The same over a stream, which carries no status."""
    with connection(address) as stream:
        stream.send(model, uuid.uuid4().hex, inputs)
        for _, result, error in stream.replies():
            if error is not None:
                return "INVALID_ARGUMENT", str(error.message())
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
    return "", ""


@pytest.mark.parametrize(
    ("model", "good", "send"),
    [
        (p.PREPROCESSING, QUESTION, _unary),
        (p.VISION, {}, _unary),
        (p.POSTPROCESSING, TOKENS, _unary),
        (p.LLM, PROMPT, _stream),
        (p.ENSEMBLE, QUESTION, _stream),
        (p.BLS, QUESTION, _stream),
    ],
)
def test_strange_tensors_are_answered_or_refused_by_name(
    server: Server, model: str, good: dict[str, Tensor], send: Any
) -> None:
    specs = _specs(server.grpc, model)
    failures = metrics(server.metrics)["dycoke_requests_total/failed"]
    seen: dict[str, int] = {"answered": 0, "refused": 0}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # the message says what it was; requests are not free
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(specs)), min_size=1, max_size=2))
        changed = {name: data.draw(strange(specs[name])) for name in names}
        tensors = [tensor.named(name) for name, tensor in {**good, **changed}.items()]
        status, message = send(server.grpc, model, tensors)
        seen["refused" if status else "answered"] += 1
        if status:
            assert status == "INVALID_ARGUMENT", message
            assert not BUG.search(message), message
            assert "\n" not in message.strip(), message

    check()
    assert seen["refused"] > EXAMPLES // 10
    assert ask(server.grpc, p.ENSEMBLE, GOOD).text == ask(server.grpc, p.BLS, GOOD).text != ""
    assert metrics(server.metrics)["dycoke_requests_total/failed"] == failures
