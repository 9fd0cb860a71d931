"""Nothing in a model's process frees Python's memory without the interpreter's lock.

That corrupts the heap, and the process dies somewhere later, seldom, with signal 11. Python's
debug hooks end a process at the first such call.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from dycoke_trt.bench.experiments.reliability.malloc_hooks import COMPILER, hooked_environment
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.runtime.protocol import BLS, ENSEMBLE
from dycoke_trt.tests.support import demo_bundle
from dycoke_trt.tests.triton_repo.conftest import SERVER_ENVIRONMENT
from dycoke_trt.tests.triton_repo.streams import ask, connection, tensor
from dycoke_trt.triton_repo.launcher import RunningServer, serving
from dycoke_trt.triton_repo.repository import write_repository

QUESTION = {
    "text_input": "What?",
    "video_bytes_input": np.zeros((1, 4, 32, 32, 3), np.uint8),
    "max_tokens": 6,
    "stream": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
}


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    if COMPILER is None:
        pytest.skip("no C compiler")
    folder: Path = tmp_path_factory.mktemp("hooked")
    bundle = demo_bundle(DyCokeConfig(k=0.5, l=2, p=0.5))
    repository = write_repository(bundle, folder / "models", threads=1)
    environment = {**SERVER_ENVIRONMENT, **hooked_environment(folder)}
    with serving(repository, environment=environment) as running:
        yield running


@pytest.mark.parametrize("model", [ENSEMBLE, BLS])
def test_outputs_that_nobody_asked_for_are_freed_under_the_lock(
    hooked: RunningServer, model: str
) -> None:
    """Also the twin's own request to the LLM step leaves some of its outputs out."""
    only_text = [grpc.InferRequestedOutput("text_output")]
    whole = ask(hooked.grpc, model, QUESTION)
    part = ask(hooked.grpc, model, QUESTION, outputs=only_text)
    assert not whole.error
    assert (part.text, part.output_tokens) == (whole.text, 0)
    hooked.wait(0)  # raises if a process died


@pytest.mark.parametrize("model", [ENSEMBLE, BLS])
def test_a_stream_that_is_cancelled_or_refused_is_freed_under_the_lock(
    hooked: RunningServer, model: str
) -> None:
    with connection(hooked.grpc) as stream:
        long = {**QUESTION, "max_tokens": 200}
        stream.send(model, uuid.uuid4().hex, [tensor(*item) for item in long.items()])
        next(stream.replies())
        stream.cancel()
    assert "max_tokens" in ask(hooked.grpc, model, {**QUESTION, "max_tokens": 0}).error
    assert not ask(hooked.grpc, model, QUESTION).error  # what was left of the first is gone
    hooked.wait(0)
