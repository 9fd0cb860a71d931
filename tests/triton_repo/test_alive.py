"""How a model's process speaks and leaves: line by line, at once, and a crash with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.protocol import BLS
from dycoke_trt.tests.triton_repo.small import write_small_repository
from dycoke_trt.tests.triton_repo.streams import ask
from dycoke_trt.triton_repo.launcher import serving

TALKATIVE = """
import atexit, ctypes
from dycoke_trt.triton_repo.models import alive


class Talkative(TritonPythonModel):
    def execute(self, requests):
        print("asked")
        if value(requests[0], "text_input") == b"crash":
            ctypes.string_at(0)
        super().execute(requests)

    def finalize(self):
        atexit.register(print, "the interpreter was taken down")
        print("left", end="")


TritonPythonModel = alive.alive(Talkative)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = write_small_repository(tmp_path / "models", BLS)
    file = folder / BLS / "1" / "model.py"
    file.write_text(file.read_text() + TALKATIVE)
    return folder


def test_a_model_that_ends_has_said_all_and_leaves_at_once(
    repository: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with serving(repository, log_file=log) as server:
        assert ask(server.grpc, BLS, {"text_input": "Hello?"}).text == "one two three"
        assert "asked" in log.read_text()  # long before a buffer is full
    text = log.read_text()
    assert "left" in text
    assert f"successfully unloaded '{BLS}'" in text
    assert "taken down" not in text


def test_a_model_that_crashes_says_where(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(repository, log_file=log) as server:
        assert ask(server.grpc, BLS, {"text_input": "crash"}).error
        with pytest.raises(DyCokeError, match=r"died \(signal 11\)"):
            server.wait(60)
    text = log.read_text()
    assert "Segmentation fault" in text
    assert "in execute" in text
    assert "asked" in text
