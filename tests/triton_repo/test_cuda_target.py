"""The path of a user with a GPU, `--target cuda`, with kernels in Triton's interpreter on this CPU.

Build, ask and serve run in processes of their own: the interpreter is chosen by TRITON_INTERPRET=1
when triton is imported. The bundle is bf16, as 7B ones are, so its embeddings cross the server in a
type that numpy does not have. The model is the demo's first two layers: nobody reads its answers.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from dycoke_trt.bundle.files import open_bundle
from dycoke_trt.bundle.paths import RECORD
from dycoke_trt.bundle.record import Installed, read_record, write_record
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import CLIPS_DIR, MODEL_DIR
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime.client import ask_server
from dycoke_trt.tests.support import DYCOKE, assert_one_line, demo_bundle, dycoke
from dycoke_trt.triton_repo.launcher import serving
from dycoke_trt.triton_repo.repository import write_repository
from safetensors.torch import load_file, save_file

LAYERS = 2
INTERPRETER = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
BUILD = ("--target", "cuda", "--kv-tokens", "512", "--tokens-per-block", "16", "--max-batch", "4")
QUESTION = ("What colour is the object?", "--video", CLIPS_DIR / "colour.mp4", "--frames", "4")


def interpreted(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(DYCOKE), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | INTERPRETER)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, after `dycoke build --target cuda`."""
    source: Path = tmp_path_factory.mktemp("model")
    for path in MODEL_DIR.iterdir():
        if path.suffix != ".safetensors":
            (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((MODEL_DIR / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = LAYERS
    config["text_config"]["layer_types"] = config["text_config"]["layer_types"][:LAYERS]
    (source / "config.json").write_text(json.dumps(config))
    dropped = tuple(f"layers.{i}." for i in range(LAYERS, 6))
    tensors = {
        name: tensor for name, tensor in load_file(MODEL_DIR / "model.safetensors").items()
        if "vision_tower" in name or not any(part in name for part in dropped)
    }  # fmt: skip
    save_file(tensors, source / "model.safetensors")
    bundle: Path = tmp_path_factory.mktemp("bundle") / "b"
    config_ = DyCokeConfig(k=0.9, l=1, p=0.5)
    export_bundle(source, bundle, config_, dtype="bfloat16", max_frames=8)
    done = interpreted("build", bundle, *BUILD)
    assert done.returncode == 0, done.stderr
    assert "KV pool of 512 tokens, batches of up to 4" in done.stdout
    return bundle


def test_the_record(built: Path) -> None:
    record = read_record(built / "engines" / "cuda", open_bundle(built), built)
    assert (record.target, record.backend, record.sm) == ("cuda", "native", None)
    assert (record.tokens_per_block, record.kv_tokens, record.max_batch) == (16, 512, 4)
    assert {"torch", "triton"} <= set(record.versions)


def test_ask(built: Path) -> None:
    done = interpreted("ask", built, *QUESTION, "--target", "cuda", "--max-tokens", "3", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["visual_tokens"] == 46
    assert 1 <= report["output_tokens"] <= 3


def test_serve(built: Path, tmp_path: Path) -> None:
    """Both native steps on the device behind a real server: embeddings in bf16 from one to the
    other, and whole decode steps."""
    repository = write_repository(built, tmp_path / "models", build="cuda")
    for model in ("vision_ttm", "tensorrt_llm"):
        text = (repository / model / "config.pbtxt").read_text()
        assert 'key: "build" value { string_value: "cuda" }' in text
        assert "TYPE_BF16" in text
    with serving(repository, environment=INTERPRETER) as server:
        answer = ask_server(
            server.grpc, str(QUESTION[0]), video=Path(QUESTION[2]), frames=4, max_tokens=3
        )
    assert answer.visual_tokens == 46
    assert 1 <= answer.output_tokens <= 3


def test_another_gpu_is_refused(built: Path, tmp_path: Path) -> None:
    """The pool was sized for the GPU on record; here a record of another one, in a copy."""
    manifest = open_bundle(built)
    record = read_record(built / "engines" / "cuda", manifest, built)
    write_record(tmp_path / "cuda", record.model_copy(update={"sm": 90}))
    with pytest.raises(DyCokeError, match=r"built for GPU architecture sm_90, here it is sm_89"):
        read_record(tmp_path / "cuda", manifest, built, installed=Installed(sm=89))
    assert (tmp_path / "cuda" / RECORD).is_file()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("build", "--kv-tokens", "8"), "allowed on this GPU beside the weights: 32 to"),
        (("build", "--tokens-per-block", "24"), "allowed: 8, 16, 32, 64, 128"),
        (("build", "--dry-run"), "compiles nothing"),
        (("ask", "Why?"), "nothing was built there; run: dycoke build"),
    ],
)
def test_refusals(command: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: none of them comes as far as a kernel."""
    monkeypatch.setattr("dycoke_trt.kernels.interpreter.INTERPRETED", True)
    name, *rest = command
    words = [demo_bundle(DyCokeConfig()), *rest]
    assert_one_line(dycoke(name, *words, "--target", "cuda"), message)


@pytest.mark.parametrize("command", [("build",), ("ask", "Why?"), ("serve", "--http-port", "0")])
def test_without_a_gpu_each_command_says_so_in_a_line(command: tuple[str, ...]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    name, *rest = command
    done = dycoke(name, demo_bundle(DyCokeConfig()), *rest, "--target", "cuda")
    assert_one_line(done, "GPU", "--target cpu")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("ask", "Why?", "--server", "x:1", "--target", "cuda"), "--target cuda has no effect"),
        (("ask", "b", "Why?", "--target", "tpu"), "unknown target 'tpu'"),
        (("repo", "b", "-o", "x", "--target", "cuda", "--threads", "2"), "--threads 2 has no"),
    ],
)
def test_options_without_an_effect(command: tuple[str, ...], message: str) -> None:
    assert_one_line(dycoke(*command), message)
