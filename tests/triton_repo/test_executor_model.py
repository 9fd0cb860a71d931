"""`tensorrt_llm` on the executor bindings and `vision_ttm` on a plan, in a real server.

The executor bindings and TensorRT's runtime are stand-ins; everything else is what
`dycoke serve --target h100 --llm executor` writes for a server without Triton's `tensorrt` backend.
"""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.demo.mp4 import encode_mp4
from dycoke_trt.demo.shapes import HELD_OUT_SEEDS, make_sample
from dycoke_trt.engines.cpu import build_cpu
from dycoke_trt.engines.doctor import counters_finding
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime.native.load import load_engine
from dycoke_trt.runtime.pipeline import Pipeline
from dycoke_trt.runtime.protocol import BLS, ENSEMBLE, LLM, VISION
from dycoke_trt.runtime.request import Event, Request
from dycoke_trt.runtime.video.read import read_video
from dycoke_trt.runtime.vision_torch import TorchVision
from dycoke_trt.tests.support import assert_one_line, demo_bundle, dycoke, until
from dycoke_trt.tests.tensorrt_standin.plan import FOLDER as TENSORRT_FOLDER
from dycoke_trt.tests.triton_repo.conftest import SERVER_ENVIRONMENT
from dycoke_trt.tests.triton_repo.streams import (
    Reply,
    ask,
    connection,
    generate,
    metrics,
    tensor,
)
from dycoke_trt.tests.trtllm_standin.build import BATCH, BLOCK, FOLDER, TARGET, write_engines
from dycoke_trt.triton_repo.launcher import RunningServer, serving
from dycoke_trt.triton_repo.processes import stubs_of
from dycoke_trt.triton_repo.repository import write_repository
from dycoke_trt.triton_repo.tritonserver import TritonServer
from dycoke_trt.triton_repo.trtllm import CPP_BACKEND, EXECUTOR
from dycoke_trt.triton_repo.trtllm_launch import choose_llm
from dycoke_trt.verify.vision_plan import synthetic_frames

CONFIG = DyCokeConfig(k=0.5, l=2, p=0.5)
SAMPLES = [make_sample(seed) for seed in HELD_OUT_SEEDS[500_000:500_008]]
LONG = 1000  # tokens: seconds


@dataclass
class Server:
    running: RunningServer
    pipeline: Pipeline
    counters: Path

    @property
    def grpc(self) -> str:
        return self.running.grpc

    def metric(self, name: str) -> float:
        return metrics(self.running.metrics)[name]


def with_standin(repository: Path) -> Path:
    """Beside their models, where the server's Python looks first."""
    for model, module in ((LLM, FOLDER / "tensorrt_llm"), (VISION, TENSORRT_FOLDER / "tensorrt")):
        if (repository / model).is_dir():
            (repository / model / "1" / module.name).symlink_to(module)
    return repository


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("executor")
    bundle = folder / "bundle"
    export_bundle(MODEL_DIR, bundle, CONFIG, dtype="float16", max_frames=16)
    build_cpu(bundle, kv_tokens=8192, tokens_per_block=BLOCK, max_batch=BATCH)
    write_engines(bundle)
    repository = write_repository(bundle, folder / "models", build=TARGET, llm=EXECUTOR)
    counters = folder / "counters.json"
    # The interpreter's GPU is the CPU: where the stand-in for TensorRT has its tensors.
    environment = {**SERVER_ENVIRONMENT, "TRITON_INTERPRET": "1"}
    environment["DYCOKE_COUNTERS_FILE"] = str(counters)
    with serving(with_standin(repository), environment=environment) as running:
        yield Server(running, Pipeline.from_record(bundle), counters)


def question(number: int, **more: Any) -> dict[str, Any]:
    sample = SAMPLES[number]
    given = {"text_input": sample.question, "video_file_input": encode_mp4(sample.frames)}
    return given | {"num_frames": 8, "max_tokens": 24, **more}


def expected(server: Server, number: int, **more: Any) -> str:
    sample = SAMPLES[number]
    frames = read_video(encode_mp4(sample.frames), 8)
    return server.pipeline.ask(frames, sample.question, max_tokens=24, **more).text


def llm_inputs(tokens: int = LONG, **more: tuple[Any, str]) -> list[Any]:
    given = {
        "input_ids": (np.arange(20, dtype=np.int32)[None], "INT32"),
        "input_lengths": (20, "INT32"),
        "request_output_len": (tokens, "INT32"),
        "streaming": (True, "BOOL"),
        **more,
    }
    return [tensor(name, *value) for name, value in given.items()]


@pytest.mark.parametrize("model", [ENSEMBLE, BLS])
def test_answers_together_are_the_native_backends(server: Server, model: str) -> None:
    def run(number: int) -> Reply:
        asked = question(number, stream=True, return_num_input_tokens=True,
                         return_num_output_tokens=True)  # fmt: skip
        return ask(server.grpc, model, asked)

    with ThreadPoolExecutor(len(SAMPLES)) as threads:
        replies = list(threads.map(run, range(len(SAMPLES))))
    for number, reply in enumerate(replies):
        assert not reply.error
        assert reply.text == expected(server, number)
        assert reply.input_tokens
        assert 0 < reply.output_tokens <= 24
    # Tokens that arrive while a response is sent leave together, all of a short answer perhaps.
    assert max(len(reply.pieces) for reply in replies) > 1
    whole = ask(server.grpc, model, question(0))
    assert (whole.text, whole.finals) == (replies[0].text, 1)


def test_stop_words_and_text_alone(server: Server) -> None:
    text = expected(server, 0)
    word = text[len(text) // 2 :]
    reply = ask(server.grpc, BLS, question(0, stop_words=[word]))
    assert reply.text == text[: len(text) // 2]
    alone = {"text_input": SAMPLES[0].question, "max_tokens": 5}
    same = server.pipeline.ask(None, SAMPLES[0].question, max_tokens=5)
    assert ask(server.grpc, BLS, alone).text == same.text


def test_the_prompt_comes_first_if_asked_for(server: Server) -> None:
    echoed = ask(server.grpc, BLS, question(1, exclude_input_in_output=False))
    assert echoed.text.endswith(expected(server, 1))
    assert SAMPLES[1].question in echoed.text


@pytest.mark.parametrize("way", ["by its client", "by stop"])
def test_cancelling(server: Server, way: str) -> None:
    ended, name = server.metric("dycoke_requests_total/cancelled"), uuid.uuid4().hex
    with connection(server.grpc) as stream:
        stream.send(LLM, name, llm_inputs())
        replies = stream.replies()
        assert next(replies)[2] is None
        if way == "by its client":
            stream.cancel()
        else:
            reply = ask(server.grpc, LLM, llm_inputs(stop=(True, "BOOL")), request_id=name)
            assert not reply.error
            tokens = 0
            for _, result, error in replies:
                assert error is None
                if result.as_numpy("output_ids") is not None:
                    tokens += result.as_numpy("output_ids").size
                if result.get_response().parameters["triton_final_response"].bool_param:
                    break
            assert tokens < LONG
    until(lambda: server.metric("dycoke_requests_total/cancelled") == ended + 1)
    until(lambda: server.metric("dycoke_kv_blocks_used") == 0)
    assert server.metric("dycoke_requests_running") == 0


def test_stop_of_nobody_is_no_error(server: Server) -> None:
    assert not ask(server.grpc, LLM, llm_inputs(stop=(True, "BOOL")), request_id="nobody").error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"runtime_top_k": (5000, "INT32")}, "top_k=5000 is not allowed; allowed: 0 to 1024"),
        ({"runtime_top_p": (7.0, "FP32")}, "top_p=7.0"),
        ({"input_lengths": (3, "INT32")}, "input_lengths: 3"),
        ({"prompt_vocab_size": (3, "INT32")}, "prompt_vocab_size: 3"),
        ({"input_ids": (np.full((1, 20), 600, np.int32), "INT32")}, "token id 600"),
        ({"request_output_len": (100_000, "INT32")}, "max_tokens 100000"),
        # The stand-in fails it, as an engine might: the server's log has the reason.
        ({"seed": (13, "UINT64"), "runtime_top_k": (0, "INT32")}, "the model failed"),
    ],
)  # fmt: skip
def test_errors(server: Server, more: dict[str, tuple[Any, str]], message: str) -> None:
    with connection(server.grpc) as stream:
        stream.send(LLM, uuid.uuid4().hex, llm_inputs(4, **more))
        _, _, error = next(stream.replies())
    assert error is not None
    assert message in error.message()
    assert ask(server.grpc, BLS, question(2)).text == expected(server, 2)
    until(lambda: server.metric("dycoke_kv_blocks_used") == 0)


def test_refusals_have_the_status_of_an_invalid_argument(server: Server) -> None:
    asked = {"text_input": SAMPLES[0].question, "max_tokens": 4, "top_k": 5000}
    status, text = generate(server.running.http, BLS, asked)
    assert (status, "top_k=5000" in text) == (400, True)


def test_decisions_are_counted_where_the_plugins_count(server: Server) -> None:
    for number in (3, 4):
        assert not ask(server.grpc, BLS, question(number)).error
    until(lambda: server.metric("dycoke_gate_decisions_total/reselect") > 0)
    assert server.metric("dycoke_gate_decisions_total/unknown") == 0
    found = counters_finding(str(server.counters))
    assert found.status == "ok"
    assert "0 unknown" in found.value


def test_embeddings_in_bfloat16(tmp_path: Path) -> None:
    """What bundles for GPUs have; numpy, and so most of the Python backend, does not know it."""
    bundle = tmp_path / "bundle"
    export_bundle(MODEL_DIR, bundle, CONFIG, dtype="bfloat16", max_frames=8)
    write_engines(bundle)
    repository = write_repository(bundle, tmp_path / "models", build=TARGET, llm=EXECUTOR)
    for folder in repository.iterdir():
        if folder.is_dir() and folder.name not in (LLM, VISION):
            shutil.rmtree(folder)
    clip = synthetic_frames(8, read_manifest(bundle).vision.image_size)
    embeddings = TorchVision.from_bundle(bundle, "cpu")(torch.from_numpy(clip))
    rows = 80
    table = torch.randn(rows, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    prompt = [5, 6, *range(512, 512 + rows), 7, 8, 9]
    events: list[Event] = []
    native = load_engine(bundle, CONFIG, kv_tokens=8192, tokens_per_block=BLOCK)
    native.submit(Request("r", prompt, 12, events.append, table))
    native.run_until_idle()
    bits = table.view(torch.int16).numpy()
    inputs = [
        tensor("input_ids", np.array([prompt], np.int32), "INT32"),
        tensor("input_lengths", len(prompt), "INT32"),
        tensor("request_output_len", 12, "INT32"),
        tensor("prompt_embedding_table", bits[None].view(ml_dtypes.bfloat16), "BF16"),
        tensor("prompt_vocab_size", rows, "INT32"),
    ]
    environment = {**SERVER_ENVIRONMENT, "TRITON_INTERPRET": "1"}
    with (
        serving(with_standin(repository), environment=environment) as running,
        connection(running.grpc) as stream,
    ):
        stream.send(VISION, "v", [tensor("frames", clip, "UINT8")])
        _, result, error = next(stream.replies())
        assert error is None
        found = result.as_numpy("visual_embeds").astype(np.float32)
        assert np.array_equal(found, embeddings.float().numpy())
        stream.send(LLM, "r", inputs)
        _, result, error = next(stream.replies())
        assert error is None
        found = result.as_numpy("output_ids").reshape(-1).tolist()
    assert found == [token for event in events for token in event.tokens]


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed")
def test_ranks_under_mpirun(tmp_path: Path) -> None:
    """A server per rank: the first answers, the second works for it; both end, and neither a
    process nor its memory stays. The death of any rank's model ends all."""
    bundle = tmp_path / "bundle"
    export_bundle(MODEL_DIR, bundle, CONFIG, dtype="float16", max_frames=8)
    write_engines(bundle)
    repository = with_standin(
        write_repository(bundle, tmp_path / "models", build=TARGET, llm=EXECUTOR)
    )
    for folder in repository.iterdir():
        if folder.is_dir() and folder.name != LLM:
            shutil.rmtree(folder)
    log = tmp_path / "log"
    options: dict[str, Any] = {"environment": SERVER_ENVIRONMENT, "log_file": log, "world_size": 2}
    with serving(repository, **options) as running:
        until(lambda: len(stubs_of(running.pid, repository)) == 2)
        stubs = stubs_of(running.pid, repository)
        reply = ask(running.grpc, LLM, llm_inputs(5))
        assert not reply.error
    until(lambda: not any(Path(f"/proc/{stub.pid}").exists() for stub in stubs))

    with serving(repository, **options) as running:
        os.kill(stubs_of(running.pid, repository)[0].pid, signal.SIGKILL)
        with pytest.raises(DyCokeError, match="model tensorrt_llm died"):
            running.wait(60)
    until(lambda: not stubs_of(running.pid, repository))


def test_what_runs_the_llm_is_chosen_by_what_is_there(tmp_path: Path) -> None:
    server = TritonServer(tmp_path / "bin" / "tritonserver", "container")
    assert choose_llm("auto", server, has_bindings=True) == EXECUTOR
    assert choose_llm(EXECUTOR, server, has_bindings=True) == EXECUTOR
    with pytest.raises(DyCokeError, match=r"libtriton_tensorrtllm\.so is missing; use --llm exec"):
        choose_llm(CPP_BACKEND, server, has_bindings=True)
    with pytest.raises(DyCokeError, match=r"tensorrt_llm is not installed .*, nor is there .*\.so"):
        choose_llm("auto", server, has_bindings=False)
    library = server.backend_library(CPP_BACKEND)
    assert library == tmp_path / "backends" / "tensorrtllm" / "libtriton_tensorrtllm.so"
    library.parent.mkdir(parents=True)
    library.touch()
    assert choose_llm("auto", server, has_bindings=False) == CPP_BACKEND
    with pytest.raises(DyCokeError, match="allowed: auto, tensorrtllm, executor"):
        choose_llm("python", server, has_bindings=True)


def test_the_choice_needs_engines(tmp_path: Path) -> None:
    bundle = demo_bundle(CONFIG)
    done = dycoke("repo", bundle, "-o", tmp_path / "m", "--llm", "executor")
    assert_one_line(done, "--llm executor has no effect with --target cpu")
    free = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    done = dycoke("serve", bundle, "--llm", "auto", *free)
    assert_one_line(done, "--llm auto has no effect with --target cpu")
