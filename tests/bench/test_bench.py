"""`dycoke bench` on real servers: outcomes that agree with the server's, two servers, Ctrl-C."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.runtime.protocol import ENSEMBLE, LLM, PREPROCESSING, VISION
from dycoke_trt.tests.bench.chromium import BINARY, chromium
from dycoke_trt.tests.support import DYCOKE, assert_one_line, demo_bundle, dycoke, until
from dycoke_trt.tests.triton_repo.conftest import SERVER_ENVIRONMENT
from dycoke_trt.tests.triton_repo.streams import ask, metrics
from dycoke_trt.triton_repo.launcher import RunningServer, serving
from dycoke_trt.triton_repo.repository import write_repository

CLIP = Path(__file__).parents[2] / "demo" / "clips" / "colour.mp4"
QUESTION = "What colour is the shape?"
ON, OFF = DyCokeConfig(k=0.7, l=2, p=0.5), DyCokeConfig.off()
LONG = 400  # tokens, so that a cancellation arrives before the end


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("bench") / "models"
    write_repository(demo_bundle(ON), repository, threads=1)
    with serving(repository, environment=SERVER_ENVIRONMENT) as running:
        yield running


def triton_counts(server: RunningServer) -> Counter[str]:
    """Requests by model and outcome, of Triton's own metrics."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for kind, model, value in re.findall(
        r'^nv_inference_request_(success|failure)\{model="(\w+)".*\} (\d+)$', text, re.MULTILINE
    ):
        found[f"{model} {kind}"] += int(value)
    return found


def our_counts(server: RunningServer) -> Counter[str]:
    found = metrics(server.metrics)
    return Counter(
        {
            name.partition("/")[2]: int(value)
            for name, value in found.items()
            if name.startswith("dycoke_requests_total/")
        }
    )


def a_long_answer(server: RunningServer) -> dict[str, Any]:
    """Random tokens that do not happen to end early: sampling depends on the seed alone."""
    triton, ours = triton_counts(server), our_counts(server)
    for seed in range(50):
        made = {"temperature": 1000.0, "top_k": 0, "seed": seed, "max_tokens": LONG}
        inputs = {"text_input": QUESTION, "video_file_input": CLIP.read_bytes(), "num_frames": 16}
        reply = ask(server.grpc, ENSEMBLE, inputs | made | {"return_num_output_tokens": True})
        if reply.output_tokens == LONG:
            break
    else:
        raise AssertionError("no seed has a long answer")
    # Both count a request a moment after its last response.
    wanted = triton[f"{ENSEMBLE} success"] + seed + 1
    until(lambda: triton_counts(server)[f"{ENSEMBLE} success"] == wanted)
    until(lambda: (our_counts(server) - ours).total() == seed + 1)
    return made


KILLED_CLIENT = """
import json, sys
from dycoke_trt.tests.triton_repo.streams import connection, tensor
address, model, count, inputs = *sys.argv[1:4], json.loads(sys.argv[4])
inputs["video_file_input"] = open(inputs["video_file_input"], "rb").read()
with connection(address) as stream:
    for i in range(int(count)):
        stream.send(model, f"{sys.argv[5]} {i}", [tensor(k, v) for k, v in inputs.items()])
    replies, begun = stream.replies(), set()
    while len(begun) < int(count):
        begun.add(next(replies)[0])
    print("begun", flush=True)
    sys.stdin.read()
"""


def killed_clients(server: RunningServer, clients: int, streams: int) -> int:
    """Requests of clients that got SIGKILL after the first response to each of them."""
    inputs = {"text_input": QUESTION, "video_file_input": str(CLIP), "num_frames": 16,
              "max_tokens": 60, "temperature": 1000.0, "top_k": 0, "stream": True}  # fmt: skip
    for number in range(clients):
        command = [sys.executable, "-c", KILLED_CLIENT, server.grpc, ENSEMBLE, str(streams)]
        command += [json.dumps(inputs), f"killed {number}"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "begun\n"
            client.kill()
    return clients * streams


def test_outcomes_agree_between_client_triton_and_our_metrics(
    server: RunningServer, tmp_path: Path
) -> None:
    """200 requests, 8 at once: 100 are to be answered, 50 cancelled, 40 malformed in four ways; 10
    are of clients that are killed: the server cancels those whose end it notices in time."""
    good = {"video": str(CLIP), "question": QUESTION}
    cancelled = {**good, **a_long_answer(server), "cancel_after": 1}
    malformed: list[dict[str, Any]] = [
        {"frames": 6},
        {"question": "  "},
        {"max_tokens": 10**6},
        {"temperature": -1.0},
    ]
    rows = []
    for i in range(10):
        wrong = [{**good, **more} for more in malformed]
        rows += [good, cancelled, wrong[0], good, good, cancelled, wrong[1], good, good, cancelled]
        rows += [wrong[2], good, good, cancelled, wrong[3], good, good, cancelled, good]
        assert len(rows) == 19 * (i + 1)
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    triton, ours = triton_counts(server), our_counts(server)
    command = [
        str(DYCOKE), "bench", "--server", server.grpc, "--questions", str(file),
        "--requests", str(len(rows)), "--concurrency", "6", "--warmup", "0",
        "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        killed = killed_clients(server, clients=5, streams=2)
        running.communicate()
    assert running.returncode == 0

    (point,) = json.loads((tmp_path / "out" / "bench.json").read_text())["points"]
    assert (point["sent"], point["answered"], point["cancelled"]) == (190, 100, 50)
    refusals = point["errors"]
    assert sum(refusals.values()) == 40
    names = ("num_frames", "text_input", "max_tokens", "temperature")
    assert [sum(n for text, n in refusals.items() if name in text) for name in names] == [10] * 4

    until(lambda: metrics(server.metrics)["dycoke_kv_blocks_used"] == 0)
    # A request is counted a moment after its blocks are free.
    until(lambda: (our_counts(server) - ours).total() >= 150 + killed)
    ours = our_counts(server) - ours
    # Answers of the killed are random: one may run into a stop sequence of the bundle.
    answered = ours["end"] + ours["length"] + ours["stop"]
    assert 100 <= answered <= 100 + killed
    assert answered + ours["cancelled"] == 150 + killed
    assert (ours["refused"], ours["failed"]) == (0, 0)  # all four before the LLM step
    until(lambda: (triton_counts(server) - triton)[f"{ENSEMBLE} success"] >= 150 + killed)
    triton = triton_counts(server) - triton
    assert triton[f"{ENSEMBLE} success"] == 150 + killed  # what is cancelled ends well for it
    # This server counts a failed ensemble request once as such and once for its step that failed.
    assert triton[f"{ENSEMBLE} failure"] == 2 * 40
    assert triton[f"{PREPROCESSING} success"] == 190 + killed  # refusing is an answer of the step
    assert triton[f"{VISION} success"] == 190 + killed - 40  # and before any work is done
    assert triton[f"{LLM} failure"] == 0
    # The same by gRPC, which is what the report takes its steps from; the killed ran beside it.
    steps = {step["model"]: step for step in point["steps"]}
    assert 190 <= steps[PREPROCESSING]["count"] <= 190 + killed
    # And the server is as it was.
    assert not ask(server.grpc, ENSEMBLE, {"text_input": QUESTION, "num_frames": 16,
                   "video_file_input": CLIP.read_bytes(), "max_tokens": 24}).error  # fmt: skip


def test_ctrl_c_keeps_what_has_ended(server: RunningServer, tmp_path: Path) -> None:
    before = our_counts(server)["end"]
    command = [
        str(DYCOKE), "bench", "--server", server.grpc, "--video", str(CLIP), QUESTION,
        "--requests", "100000", "--concurrency", "2", "-o", str(tmp_path),
    ]  # fmt: skip
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as running:
        until(lambda: our_counts(server)["end"] - before > 8)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    assert running.returncode == 130, err
    assert "Traceback" not in err
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["interrupted"]
    (point,) = report["points"]
    assert point["answered"] >= 5  # the warm-up's two, and those in flight, are not among them
    assert not point["errors"]
    rows = list(csv.DictReader((tmp_path / "requests.csv").read_text().splitlines()))
    assert Counter(row["outcome"] for row in rows) == {"answered": point["answered"]}
    assert "Stopped before its end" in (tmp_path / "report.html").read_text()
    assert str(tmp_path / "report.html") in out


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of DyCoke on and off, two arrival rates, two rounds."""
    out = tmp_path_factory.mktemp("paired")
    done = dycoke(
        "bench", "--server", demo_bundle(ON), "--against", demo_bundle(OFF), "--suite", "shapes",
        "--samples", "3", "--requests", "3", "--rate", "5,20", "--rounds", "2", "--seed", "1",
        "--ttft-limit", "60000", "--warmup", "1", "-o", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_two_servers_take_turns(paired: Path) -> None:
    rows = list(csv.DictReader((paired / "requests.csv").read_text().splitlines()))
    assert {row["outcome"] for row in rows} == {"answered"}
    order = list(dict.fromkeys((row["round"], row["load"], row["server"]) for row in rows))
    on, off = demo_bundle(ON).name, demo_bundle(OFF).name
    assert order == [
        *(("0", load, name) for load in ("5 per s", "20 per s") for name in (on, off)),
        *(("1", load, name) for load in ("5 per s", "20 per s") for name in (off, on)),
    ]
    report = json.loads((paired / "bench.json").read_text())
    assert report["machine"].keys() >= {"processor", "cores", "versions", "commit"}
    assert not report["interrupted"]
    assert [(p["server"], p["rate"], p["sent"], p["rounds"]) for p in report["points"]] == [
        (on, 5.0, 6, 2), (off, 5.0, 6, 2), (on, 20.0, 6, 2), (off, 20.0, 6, 2)
    ]  # fmt: skip
    for point in report["points"]:
        mine = [r for r in rows if (r["server"], r["load"]) == (point["server"], point["load"])]
        assert point["answered"] == len(mine) == 6
        assert point["tokens_per_second"] == pytest.approx(
            sum(int(row["tokens"]) for row in mine) / point["seconds"]
        )
        assert point["goodput"] == point["requests_per_second"]  # the limit is a minute
        assert {"preprocessing", "vision_ttm", "tensorrt_llm", "postprocessing"} <= {
            step["model"] for step in point["steps"]
        }
    assert {row["metric"] for row in report["comparison"]} >= {"ttft", "tokens_per_second"}
    for row in report["comparison"]:
        assert 0 < row["low"] <= row["value"] <= row["high"]
        assert row["rounds"] == 2


@pytest.mark.skipif(BINARY is None, reason="chromium is not installed")
def test_the_page_in_a_browser(paired: Path) -> None:
    with chromium() as browser:
        for dark in (False, True):
            for width in (390, 1100):
                seen = browser.open(paired / "report.html", width=width, dark=dark)
                assert seen.console == []
                assert seen.width <= width


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--video", CLIP], "say what to ask"),
        (["--video", CLIP, "?", "--suite", "shapes"], "say what to ask"),
        (["--suite", "mvbench"], "allowed: shapes"),
        (["--video", CLIP, "?", "--samples", "3"], "--samples 3 has no effect without --suite"),
        (["--suite", "shapes", "--samples", "0"], "--samples 0"),
        (["--suite", "shapes", "--concurrency", "1,x"], "--concurrency '1,x'"),
        (["--suite", "shapes", "--concurrency", "2,2"], "different numbers"),
        (["--suite", "shapes", "--rate", "0"], "rate=0.0"),
        (["--suite", "shapes", "--rounds", "0"], "--rounds 0"),
        (["--suite", "shapes", "--ttft-limit", "0"], "--ttft-limit 0.0"),
        (["--suite", "shapes", "--samples", "1", "--against", "localhost:1"], "needs two"),
        (["--suite", "shapes", "--samples", "1"], "localhost:1: no Triton server answers"),
        (["--suite", "shapes", "--samples", "1", "--against", "nowhere"], "no bundle.json"),
    ],
)
def test_refusals(tmp_path: Path, options: list[str], said: str) -> None:
    done = dycoke("bench", "--server", "localhost:1", "-o", tmp_path / "out", *options)
    assert_one_line(done, said)
    assert not (tmp_path / "out").exists()
