"""The gRPC client and `dycoke ask --server` on a real server with small models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import CLIPS_DIR
from dycoke_trt.runtime import client as client_module
from dycoke_trt.runtime.client import ask_server
from dycoke_trt.runtime.protocol import ENSEMBLE
from dycoke_trt.tests.support import DYCOKE, assert_one_line, dycoke, until
from dycoke_trt.tests.triton_repo.small import write_small_repository
from dycoke_trt.triton_repo.launcher import RunningServer, serving

CLIP = CLIPS_DIR / "describe.mp4"
NUMPY2 = Path(sys.prefix) / "numpy2"
BESIDE_NUMPY_2 = """
import sys, numpy
from pathlib import Path
from dycoke_trt.runtime import client
assert numpy.__version__.startswith("2."), numpy.__version__
client.MAX_FILE_BYTES = int(sys.argv[3])
options = {"video": Path(sys.argv[2]), "frames": 8, "seed": 2**64 - 1, "stop": ["a", "b"]}
print(client.ask_server(sys.argv[1], "what arrived", top_k=0, **options).text)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(write_small_repository(tmp_path_factory.mktemp("client") / "models")) as running:
        yield running


def test_text_streams_and_counts_add_up(small: RunningServer) -> None:
    pieces: list[str] = []
    answer = ask_server(small.grpc, "Why?", max_tokens=4, on_text=pieces.append)
    assert pieces == ["one", " two", " three", " four"]
    assert (answer.text, answer.output_tokens, answer.input_tokens) == ("".join(pieces), 4, 7)
    assert 0 < answer.time_to_first_token <= answer.total_time
    assert answer.tokens_per_second > 0
    assert (answer.visual_tokens_before, answer.visual_tokens) == (0, 0)
    other = ask_server(small.grpc, "Why?", video=CLIP)
    assert (other.visual_tokens_before, other.visual_tokens) == (576, 265)
    assert other.request_id != answer.request_id


def test_what_is_sent(small: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(**options: object) -> set[str]:
        return set(ask_server(small.grpc, "what arrived", **options).text.split())

    always = {"text_input", "max_tokens", "top_k", "stream", "return_num_input_tokens",
              "return_num_output_tokens"}  # fmt: skip
    always = {f"{name}[1,1]" for name in always}

    assert sent() == sent(temperature=0, top_k=0) == always
    file = {"video_file_input[1,1]", "num_frames[1,1]"}
    assert sent(video=CLIP, frames=8) == always | file
    monkeypatch.setattr(client_module, "MAX_FILE_BYTES", 10)
    assert sent(video=CLIP, frames=8) == always | {"video_bytes_input[1,8,48,48,3]"}
    assert client_module.image_size(small.grpc, ENSEMBLE) == 48
    sampled = {f"{name}[1,1]" for name in ("temperature", "top_p", "seed")}
    assert sent(top_k=0, seed=2**64 - 1, stop=["a", "b"]) == always | sampled | {"stop_words[1,2]"}


@pytest.mark.skipif(not NUMPY2.is_dir(), reason="numpy 2 is not installed: make numpy2")
@pytest.mark.parametrize("most_bytes", [10, 2**30])
def test_the_same_is_sent_beside_numpy_2(
    small: RunningServer, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    monkeypatch.setattr(client_module, "MAX_FILE_BYTES", most_bytes)
    here = ask_server(
        small.grpc, "what arrived", video=CLIP, frames=8, top_k=0, seed=2**64 - 1, stop=["a", "b"]
    )
    there = subprocess.run(
        [sys.executable, "-c", BESIDE_NUMPY_2, small.grpc, str(CLIP), str(most_bytes)],
        env=os.environ | {"PYTHONPATH": str(NUMPY2)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (there.returncode, there.stdout) == (0, here.text + "\n"), there.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": "refuse"}, "text_input: not that one"),
        ({"model": "other"}, "has no model 'other' that is ready"),
        ({"video": Path("no.mp4")}, "no.mp4: no such file"),
        ({"seed": -1}, "seed: -1 is not allowed"),
        ({"seed": 2**64}, "seed: 18446744073709551616 is not allowed"),
        ({"max_tokens": 2**31}, "max_tokens: 2147483648 is not allowed"),
        ({"server": "http://localhost:8001"}, "allowed: HOST:PORT"),
        ({"server": "127.0.0.1:1"}, "dycoke serve BUNDLE"),
        ({"server": "HTTP"}, "is it the gRPC port?"),
    ],
)
def test_errors_are_one_line(small: RunningServer, options: dict[str, object], message: str):
    given = {"server": small.grpc, "question": "Why?", **options}
    given["server"] = small.http if given["server"] == "HTTP" else given["server"]
    with pytest.raises(DyCokeError) as error:
        ask_server(**given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_prints_text_and_figures(small: RunningServer) -> None:
    done = dycoke("ask", "--server", small.grpc, "--video", CLIP, "Why?", "--max-tokens", "3")
    assert (done.returncode, done.stdout) == (0, "one two three"), done.stderr
    assert "visual tokens 576 -> 265]" in done.stderr
    done = dycoke("ask", "Why?", "--server", small.grpc, "--json", "--max-tokens", "3")
    report = json.loads(done.stdout)
    assert (report["text"], report["output_tokens"]) == ("one two three", 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--server", "localhost:1", "bundle", "Why?"), "leave out 'bundle'"),
        (("Why?",), "give BUNDLE and QUESTION, or --server"),
        (("bundle", "What", "now?"), "3 arguments"),
        (("--server", "localhost:1", "Why?", "--seed", "1"), "no effect on greedy answers"),
    ],
)
def test_the_command_refuses(args: tuple[str, ...], message: str) -> None:
    assert_one_line(dycoke("ask", *args), message)


def test_interrupting_cancels_on_the_server(small: RunningServer) -> None:
    def cancelled() -> int:
        return int(ask_server(small.grpc, "how many cancelled").text)

    before = cancelled()
    command = [str(DYCOKE), "ask", "--server", small.grpc, "sleep"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        assert asking.stdout.read(7) == b"waiting"
        asking.send_signal(signal.SIGINT)
        _, errors = asking.communicate(timeout=60)
    assert asking.returncode == 130
    assert b"Traceback" not in errors
    until(lambda: cancelled() != before)
