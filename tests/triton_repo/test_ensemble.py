"""The product end to end: encoded videos and questions over gRPC, answers on a real server."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.demo.mp4 import encode_mp4, round_trip
from dycoke_trt.demo.shapes import HELD_OUT_SEEDS, Sample, make_sample
from dycoke_trt.eval.shapes import MAX_NEW_TOKENS, Answerer
from dycoke_trt.eval.study import Setting
from dycoke_trt.runtime.protocol import BLS, ENSEMBLE
from dycoke_trt.runtime.video.read import read_video
from dycoke_trt.tests.triton_repo.conftest import CONFIG, Server
from dycoke_trt.tests.triton_repo.streams import Reply, ask

BOTH = pytest.mark.parametrize("model", [ENSEMBLE, BLS])
SEEDS = HELD_OUT_SEEDS[500_000:500_030]


def question(sample: Sample, **more: Any) -> dict[str, Any]:
    return {
        "text_input": sample.question,
        "video_file_input": encode_mp4(sample.frames),
        "num_frames": len(sample.frames),
        "max_tokens": MAX_NEW_TOKENS,
        "stream": True,
        **more,
    }


@pytest.fixture(scope="module")
def describe() -> Sample:
    return next(s for s in map(make_sample, HELD_OUT_SEEDS[600_000:]) if s.task == "describe")


def test_held_out_videos_are_answered_as_the_oracle_does(server: Server) -> None:
    answerer = Answerer(MODEL_DIR)
    same = 0
    for sample in map(make_sample, SEEDS):
        # The oracle sees the frames that the server decodes from the file.
        decoded = read_video(encode_mp4(sample.frames), len(sample.frames))
        assert torch.equal(torch.as_tensor(round_trip(sample.frames)), decoded)
        reply = ask(server.grpc, ENSEMBLE, question(sample))
        assert not reply.error
        generation, _ = answerer.generate(
            answerer.features(sample), sample.question, Setting(CONFIG)
        )
        expected = answerer.tokenizer.decode(generation.tokens, skip_special_tokens=True)
        same += reply.text == expected
    assert same >= 29, f"{same} of {len(SEEDS)}"


@BOTH
def test_sixteen_streams_at_once_answer_as_one_by_one(server: Server, model: str) -> None:
    samples = [make_sample(seed) for seed in SEEDS[:16]]

    def run(sample: Sample) -> Reply:
        return ask(server.grpc, model, question(sample))

    alone = [run(sample).text for sample in samples]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(run, samples))
    assert [reply.text for reply in together] == alone
    assert all(reply.finals == 1 and not reply.error for reply in together)


@BOTH
def test_deltas_are_the_whole_text_and_counts_are_right(
    server: Server, describe: Sample, model: str
) -> None:
    counts = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    streamed = ask(server.grpc, model, question(describe, **counts))
    whole = ask(server.grpc, model, question(describe, **counts, stream=False))
    assert len(streamed.pieces) > 10
    assert len(whole.pieces) == 1
    assert streamed.text == whole.text
    tokens = len(server.pipeline.prompts.tokenizer.encode(whole.text).ids)
    assert streamed.output_tokens == whole.output_tokens == tokens
    visual = server.pipeline.manifest.visual_tokens(len(describe.frames))
    prompt = server.pipeline.prompts.build(describe.question, visual)
    assert streamed.input_tokens == whole.input_tokens == len(prompt)
    plain = ask(server.grpc, model, question(describe))
    assert plain.input_tokens is None
    assert plain.output_tokens == 0


@BOTH
def test_random_bytes_stream_as_the_same_text(server: Server, describe: Sample, model: str) -> None:
    """Sampling at a high temperature draws byte tokens: broken and split characters."""
    wild = {"temperature": 1e3, "top_k": 0, "max_tokens": 80}
    replies = [
        [
            ask(server.grpc, model, question(describe, **wild, seed=seed, stream=stream)).text
            for stream in (True, False)
        ]
        for seed in range(6)
    ]
    assert all(streamed == whole for streamed, whole in replies)
    assert any("\ufffd" in whole for _, whole in replies)
    assert len({whole for _, whole in replies}) == 6


def test_a_split_character_does_not_leak_into_a_later_request(
    server: Server, describe: Sample
) -> None:
    """Answers cut at every length, all with the same id: each begins with its own first token."""
    wild = {"temperature": 1e3, "top_k": 0, "seed": 3}
    whole = ask(server.grpc, ENSEMBLE, question(describe, **wild, max_tokens=40)).text
    for length in range(1, 30):
        reply = ask(
            server.grpc, ENSEMBLE, question(describe, **wild, max_tokens=length), request_id="same"
        )
        assert whole.startswith(reply.text.rstrip("\ufffd"))


@BOTH
def test_greedy_answers_do_not_depend_on_a_neighbour_that_samples(
    server: Server, describe: Sample, model: str
) -> None:
    expected = ask(server.grpc, model, question(describe)).text
    frozen = question(describe, temperature=0.0, top_k=0, seed=1)
    assert ask(server.grpc, model, frozen).text == expected
    with ThreadPoolExecutor(4) as threads:
        wild = threads.submit(
            ask, server.grpc, model, question(describe, temperature=5.0, top_k=0, seed=1)
        )
        assert ask(server.grpc, model, question(describe)).text == expected
        assert wild.result().text != expected


@BOTH
def test_stop_words_end_the_answer(server: Server, describe: Sample, model: str) -> None:
    whole = ask(server.grpc, model, question(describe)).text
    cut = ask(server.grpc, model, question(describe, stop_words=["appears", "nothing"])).text
    assert "appears" in whole
    assert cut.strip() == whole.partition("appears")[0].strip()


def test_text_alone_works_on_the_twin(server: Server) -> None:
    inputs = {"text_input": "What?", "max_tokens": 8, "stream": True}
    reply = ask(server.grpc, BLS, inputs, request_id="")
    assert not reply.error
    assert reply.text == server.pipeline.ask(None, "What?", max_tokens=8).text


def test_raw_frames_answer_as_the_file_does(server: Server, describe: Sample) -> None:
    expected = ask(server.grpc, ENSEMBLE, question(describe)).text
    inputs = question(describe)
    frames = read_video(inputs.pop("video_file_input"), inputs.pop("num_frames"))
    assert ask(
        server.grpc, ENSEMBLE, inputs | {"video_bytes_input": frames.numpy()[None]}
    ).text == (expected)


def test_the_prompt_can_be_echoed(server: Server, describe: Sample) -> None:
    inputs = question(describe, stream=False)
    answer = ask(server.grpc, ENSEMBLE, inputs).text
    echoed = ask(server.grpc, ENSEMBLE, inputs | {"exclude_input_in_output": False}).text
    assert echoed.endswith(answer)
    assert describe.question in echoed


def test_http_generate_and_generate_stream(server: Server) -> None:
    expected = server.pipeline.ask(None, "What?", max_tokens=8).text
    body = {"text_input": "What?", "max_tokens": 8}

    def post(path: str, content: dict[str, Any]) -> str:
        request = urllib.request.Request(
            f"http://{server.http}/v2/models/{BLS}/{path}", json.dumps(content).encode()
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text: str = answer.read().decode()
        return text

    assert json.loads(post("generate", body))["text_output"] == expected
    chunks = [
        json.loads(line.removeprefix("data: "))["text_output"]
        for line in post("generate_stream", {**body, "stream": True}).splitlines()
        if line.startswith("data: ")
    ]
    assert len(chunks) > 1
    assert "".join(chunks) == expected
