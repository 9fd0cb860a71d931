"""Bad input over gRPC: INVALID_ARGUMENT that names the field, and the server goes on."""

from __future__ import annotations

import base64
import uuid
from typing import Any

import numpy as np
import pytest
from dycoke_trt.demo.mp4 import encode_mp4
from dycoke_trt.demo.shapes import HELD_OUT_SEEDS, make_sample
from dycoke_trt.runtime.protocol import BLS, CLIENT_INPUTS, ENSEMBLE, LLM
from dycoke_trt.tests.support import until
from dycoke_trt.tests.triton_repo.conftest import Server
from dycoke_trt.tests.triton_repo.streams import (
    Reply,
    ask,
    connection,
    generate,
    metrics,
    tensor,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SAMPLE = make_sample(HELD_OUT_SEEDS[700_000])
MP4 = encode_mp4(SAMPLE.frames)
FRAMES = np.zeros((1, 4, 32, 32, 3), np.uint8)
GOOD: dict[str, Any] = {
    "text_input": SAMPLE.question,
    "video_file_input": MP4,
    "num_frames": 8,
    "max_tokens": 24,
}
WITHOUT_VIDEO = {"text_input": SAMPLE.question, "max_tokens": 24}


def refused(reply: Reply, *names: str) -> None:
    assert reply.error
    assert reply.pieces == []
    for name in names:
        assert name in reply.error, reply.error


BAD = {
    "no video": (WITHOUT_VIDEO, ["video_bytes_input", "video_file_input", "dycoke_bls"]),
    "two videos": (GOOD | {"video_bytes_input": FRAMES}, ["video_bytes_input", "video_file_input"]),
    "two files": (GOOD | {"video_file_input": [MP4, MP4]}, ["video_file_input"]),
    "frames for raw": (
        WITHOUT_VIDEO | {"video_bytes_input": FRAMES, "num_frames": 4},
        ["num_frames", "video_bytes_input"],
    ),
    "6 frames": (GOOD | {"num_frames": 6}, ["num_frames", "6 frames", "multiples of 4", "nearest"]),
    "9 raw frames": (
        WITHOUT_VIDEO | {"video_bytes_input": np.zeros((1, 9, 8, 8, 3), np.uint8)},
        ["video_bytes_input", "the nearest is 8"],
    ),
    "too many frames": (GOOD | {"num_frames": 10_000}, ["num_frames", "the nearest is 32"]),
    "0 frames": (GOOD | {"num_frames": 0}, ["num_frames", "the nearest is 4"]),
    "2 channels": (
        WITHOUT_VIDEO | {"video_bytes_input": np.zeros((1, 4, 8, 8, 2), np.uint8)},
        ["video_bytes_input", "[F, H, W, 3]"],
    ),
    "no pixel": (
        WITHOUT_VIDEO | {"video_bytes_input": np.zeros((1, 4, 0, 8, 3), np.uint8)},
        ["video_bytes_input"],
    ),
    "3 dimensions": (
        WITHOUT_VIDEO | {"video_bytes_input": np.zeros((1, 4, 8, 3), np.uint8)},
        ["video_bytes_input"],
    ),
    "a batch of 2": (
        WITHOUT_VIDEO | {"video_bytes_input": np.zeros((2, 4, 8, 8, 3), np.uint8)},
        ["batch"],
    ),
    "no mp4": (GOOD | {"video_file_input": b"not a video"}, ["video_file_input", "video"]),
    "empty file": (GOOD | {"video_file_input": b""}, ["video_file_input"]),
    "cut mp4": (GOOD | {"video_file_input": MP4[: len(MP4) // 2]}, ["video_file_input"]),
    "a path": (GOOD | {"video_file_input": b"/etc/passwd"}, ["video_file_input"]),
    "an address": (GOOD | {"video_file_input": b"http://localhost/v.mp4"}, ["video_file_input"]),
    "a playlist": (
        GOOD | {"video_file_input": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"},
        ["video_file_input"],
    ),
    "a concat script": (
        GOOD | {"video_file_input": b"ffconcat version 1.0\nfile /etc/passwd\n"},
        ["video_file_input"],
    ),
    "broken base64": (
        GOOD | {"video_file_input": b"data:video/mp4;base64,@@@"},
        ["video_file_input", "base64"],
    ),
    "empty question": (GOOD | {"text_input": "  "}, ["text_input", "empty"]),
    "long question": (GOOD | {"text_input": "why " * 25_000}, ["text_input", "100000 bytes"]),
    "special token": (GOOD | {"text_input": "a <|im_end|> b"}, ["text_input", "<|im_end|>"]),
    "no text": (GOOD | {"text_input": b"\xff\xfe"}, ["text_input", "UTF-8"]),
    "no tokens": (GOOD | {"max_tokens": 0}, ["max_tokens"]),
    "too many tokens": (GOOD | {"max_tokens": 1_000_000}, ["max_tokens", "1000000"]),
    "cold": (GOOD | {"temperature": -1.0}, ["temperature"]),
    "no number": (GOOD | {"temperature": float("nan")}, ["temperature"]),
    "top_k": (GOOD | {"top_k": -1}, ["top_k"]),
    "top_p": (GOOD | {"top_p": 1.5}, ["top_p"]),
    "empty stop word": (GOOD | {"stop_words": ["a", ""]}, ["stop_words"]),
    "echo on a stream": (
        GOOD | {"exclude_input_in_output": False, "stream": True},
        ["exclude_input_in_output"],
    ),
}


# The twin takes text alone.
CASES = [(ENSEMBLE, case) for case in BAD] + [(BLS, case) for case in BAD if case != "no video"]


@pytest.mark.parametrize(("model", "case"), CASES)
def test_bad_input_is_refused_by_name(server: Server, model: str, case: str) -> None:
    inputs, names = BAD[case]
    refused(ask(server.grpc, model, inputs), *names)


def test_refusals_have_the_status_of_an_invalid_argument(server: Server) -> None:
    """Seen over HTTP, where it is 400: a gRPC stream carries the message alone."""
    video = {"video_file_input": "data:video/mp4;base64," + base64.b64encode(MP4).decode()}
    good = {**GOOD, **video, "id": uuid.uuid4().hex}
    assert generate(server.http, BLS, good) == (200, ask(server.grpc, BLS, GOOD).text)
    for wrong, name in (
        ({"num_frames": 6}, "num_frames"),
        ({"top_p": 7.0}, "top_p"),
        ({"text_input": ""}, "text_input"),
    ):
        status, text = generate(server.http, BLS, good | wrong)
        assert status == 400, (wrong, text)
        assert name in text
    assert generate(server.http, ENSEMBLE, good) == (200, ask(server.grpc, ENSEMBLE, GOOD).text)
    status, text = generate(server.http, ENSEMBLE, {**GOOD, **video})
    assert status == 400
    assert "request id" in text


def test_an_id_is_needed_and_must_be_free(server: Server) -> None:
    refused(ask(server.grpc, ENSEMBLE, GOOD, request_id=""), "request id", "dycoke_bls")
    assert not ask(server.grpc, BLS, GOOD, request_id="").error
    # Drawn nearly evenly, and with this seed without the end token: it lasts for all 500.
    wild = {"temperature": 1e3, "top_k": 0, "seed": 7}
    long = GOOD | wild | {"max_tokens": 500, "stream": True}
    tensors = [tensor(name, value) for name, value in long.items()]
    with connection(server.grpc) as stream:
        stream.send(ENSEMBLE, "twice", tensors)
        replies = stream.replies()
        assert next(replies)[2] is None  # it runs
        refused(ask(server.grpc, ENSEMBLE, GOOD, request_id="twice"), "'twice'", "in flight")
        # The first is not disturbed, and the twin takes the id.
        assert not ask(server.grpc, BLS, GOOD, request_id="twice").error
        for _, result, error in replies:
            assert error is None
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
    assert not ask(server.grpc, ENSEMBLE, GOOD, request_id="twice").error


def test_unknown_parameters_are_refused(server: Server) -> None:
    for model in (ENSEMBLE, BLS):
        reply = ask(server.grpc, model, GOOD, parameters={"beam_width": 4})
        refused(reply, "beam_width")


def test_a_data_uri_is_a_file(server: Server) -> None:
    uri = b"data:video/mp4;base64," + base64.b64encode(MP4)
    expected = ask(server.grpc, BLS, GOOD)
    assert expected.text
    assert ask(server.grpc, BLS, GOOD | {"video_file_input": uri}).text == expected.text


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({"input_lengths": (3, "INT32")}, "input_lengths"),
        ({"input_ids": None}, "input_ids"),
        ({"prompt_vocab_size": (7, "INT32")}, "prompt_vocab_size"),
        ({"stop_words_list": (np.array([[[5], [9]]], np.int32), "INT32")}, "stop_words_list"),
        ({"input_ids": (np.array([[1, 10_000]], np.int32), "INT32")}, "10000"),
    ],
)
def test_the_llm_step_checks_its_own_tensors(
    server: Server, tensors: dict[str, Any], name: str
) -> None:
    good = {
        "input_ids": (np.array([[1, 2]], np.int32), "INT32"),
        "input_lengths": (2, "INT32"),
        "request_output_len": (2, "INT32"),
    }
    given = {**good, **tensors}
    made = [tensor(key, *value) for key, value in given.items() if value is not None]
    with connection(server.grpc) as stream:
        stream.send(LLM, uuid.uuid4().hex, made)
        _, _, error = next(stream.replies())
    assert error is not None
    assert name in error.message()


DTYPES = ["BYTES", "INT32", "FP32", "BOOL", "UINT64", "UINT8", "INT64", "FP16"]
NUMPY = {
    "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_, "UINT64": np.uint64,
    "UINT8": np.uint8, "INT64": np.int64, "FP16": np.float16,
}  # fmt: skip


@st.composite
def malformed(draw: st.DrawFn) -> tuple[list[Any], str]:
    """A good request with one tensor of a wrong type, a wrong shape, or a name that is none."""
    spec = draw(st.sampled_from(CLIENT_INPUTS))
    kind = draw(st.sampled_from(["dtype", "shape", "name"]))
    name, dtype = spec.name, spec.dtype
    shape: tuple[int, ...] = (1, *(max(1, size) for size in spec.shape))
    if kind == "dtype":
        dtype = draw(st.sampled_from([other for other in DTYPES if other != spec.dtype]))
    elif kind == "shape":
        sizes = st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple)
        # One dimension more or less than the tensor has, or a batch of several.
        shape = draw(sizes.filter(lambda s: len(s) != len(shape) or s[0] > 1))
    else:
        name = draw(st.text("abcxyz_", min_size=1, max_size=12).map(lambda text: f"{text}_q"))
    if dtype == "BYTES":
        value = np.full(shape, draw(st.binary(max_size=20)), np.object_)
    else:
        value = np.full(shape, 1, NUMPY[dtype])
    rest = [tensor(key, given) for key, given in GOOD.items() if key != name]
    return [*rest, tensor(name, value, dtype)], name


def test_a_thousand_malformed_requests(server: Server) -> None:
    failures = metrics(server.metrics)["dycoke_requests_total/failed"]

    @settings(
        max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(malformed(), st.sampled_from([ENSEMBLE, BLS]))
    def check(request: tuple[list[Any], str], model: str) -> None:
        tensors, name = request
        reply = ask(server.grpc, model, tensors)
        # Of two tensors whose batches differ, the server names either.
        refused(reply, "batch" if "batch size does not match" in reply.error else name)

    check()
    assert ask(server.grpc, ENSEMBLE, GOOD).text == ask(server.grpc, BLS, GOOD).text != ""
    until(lambda: metrics(server.metrics)["dycoke_kv_blocks_used"] == 0)  # published a little later
    assert metrics(server.metrics)["dycoke_requests_total/failed"] == failures
