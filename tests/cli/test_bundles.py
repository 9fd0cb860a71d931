"""export, verify, build and ask on the demo model, as a user runs them, and with bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo import CLIPS_DIR, MODEL_DIR
from dycoke_trt.tests.support import assert_one_line, demo_bundle, dycoke
from safetensors.torch import load_file, save_file

CLIPS = json.loads((CLIPS_DIR / "clips.json").read_text())
NO_KERNELS = ("--kernel-target", "none")  # they take their time
CLIP = CLIPS_DIR / CLIPS[0]["file"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model that a test may break."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL_DIR, folder)
    return folder


def test_from_checkpoint_to_answer(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    args = ("--dtype", "float32", "--max-frames", "32", "--kernel-target", "sm_90")
    done = dycoke("export", MODEL_DIR, "-o", bundle, *args)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in bundle.iterdir()) == [
        "bundle.json", "kernels", "llm", "tokenizer", "vision.safetensors", "vision_ttm.onnx"
    ]  # fmt: skip
    assert (
        "kernels/select_b64.sm_90.cubin"
        in json.loads((bundle / "bundle.json").read_text())["parts"]
    )
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert str(DyCokeConfig.tuned()) in done.stdout
    assert read_manifest(bundle).config == DyCokeConfig.tuned()

    done = dycoke("verify", bundle, "--source", MODEL_DIR, "--json")
    assert done.returncode == 0, done.stderr
    checks = json.loads(done.stdout)
    assert len(checks) == 1 + 5 + 3 + 2  # files; tower; projector, pooling, end; llm
    assert all(check["passed"] for check in checks)

    done = dycoke("build", bundle, "--target", "cpu")
    assert done.returncode == 0, done.stderr
    right = 0
    for clip in CLIPS:
        video = CLIPS_DIR / clip["file"]
        done = dycoke("ask", bundle, clip["question"], "--video", video, "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["visual_tokens_before_ttm"] == 16 * 36
        assert report["visual_tokens"] == 265
        assert report["finish"] == "end"
        assert report["config"]["order"] == "importance"
        assert report["selection"]["decisions"]["reselect"] == report["output_tokens"]
        right += report["text"] == clip["answer"]
    assert right >= len(CLIPS) - 2  # at K = P = 0.7, on held-out clips


def test_ask_streams_text_and_stops() -> None:
    bundle, clip = demo_bundle(DyCokeConfig()), next(c for c in CLIPS if c["task"] == "describe")
    args = ("ask", bundle, clip["question"], "--video", CLIPS_DIR / clip["file"])
    whole = dycoke(*args)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.startswith("First a ")
    assert "visual tokens 576 -> 265" in whole.stderr
    cut = dycoke(*args, "--stop", " Then")
    assert cut.stdout.strip() == whole.stdout.split(" Then")[0].strip()
    short = dycoke(*args, "--max-tokens", "3")
    assert len(short.stdout.split()) <= 3
    for top_k in ("0", "1"):
        assert dycoke(*args, "--temperature", "0", "--top-k", top_k).stdout == whole.stdout
    seeded = [dycoke(*args, "--top-k", "0", "--temperature", "2", "--seed", s) for s in "112"]
    assert seeded[0].stdout == seeded[1].stdout != seeded[2].stdout


def test_verification_finds_other_weights(model: Path, tmp_path: Path) -> None:
    bundle = demo_bundle(DyCokeConfig())
    weights = load_file(model / "model.safetensors")
    name = next(n for n in weights if "layers.3" in n and n.endswith("down_proj.weight"))
    weights[name] = weights[name] * 1.01
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert_one_line(dycoke("verify", bundle, "--source", model), "is revision", "export again")

    # Same revision claimed, other numbers: the comparison itself has to notice.
    other = tmp_path / "other"
    done = dycoke("export", model, "-o", other, "--dtype", "float32", *NO_KERNELS)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((other / "bundle.json").read_text())
    manifest["source"] = json.loads((bundle / "bundle.json").read_text())["source"]
    (other / "bundle.json").write_text(json.dumps(manifest))
    done = dycoke("verify", other, "--source", MODEL_DIR, "--json")
    assert done.returncode == 1
    failed = [check["stage"] for check in json.loads(done.stdout) if not check["passed"]]
    assert failed == ["llm prefill logits", "llm decode logits"]


def test_a_tensor_parallel_bundle_is_verified_rank_by_rank(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    args = ("--preset", "paper", "--dtype", "float32", "--tp", "2", *NO_KERNELS)
    done = dycoke("export", MODEL_DIR, "-o", bundle, *args)
    assert done.returncode == 0, done.stderr
    assert read_manifest(bundle).config == DyCokeConfig.paper()
    done = dycoke("verify", bundle, "--source", MODEL_DIR, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = [check["stage"] for check in json.loads(done.stdout)]
    assert stages[-2:] == ["llm prefill logits", "llm decode logits"]

    # Other numbers on the second rank alone, with a manifest that claims them.
    part = bundle / "llm" / "rank1.safetensors"
    weights = load_file(part)
    name = next(n for n in weights if "layers.3" in n and n.endswith("mlp.proj.weight"))
    save_file(weights | {name: weights[name] * 1.01}, part)
    manifest = json.loads((bundle / "bundle.json").read_text())
    data = part.read_bytes()
    manifest["parts"]["llm/rank1.safetensors"] = {
        "size": len(data), "sha256": hashlib.sha256(data).hexdigest()
    }  # fmt: skip
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    done = dycoke("verify", bundle, "--source", MODEL_DIR, "--json")
    assert done.returncode == 1, done.stderr
    failed = [check["stage"] for check in json.loads(done.stdout) if not check["passed"]]
    assert failed == ["llm prefill logits", "llm decode logits"]


def test_verify_without_source_reads_every_byte(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(demo_bundle(DyCokeConfig()), bundle)
    assert dycoke("verify", bundle).returncode == 0
    graph = bundle / "vision_ttm.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    assert_one_line(dycoke("verify", bundle), "vision_ttm.onnx", "sha256", "export again")


def break_weights(model: Path, how: str) -> None:
    path = model / "model.safetensors"
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif how == "garbage":
        path.write_bytes(b"\xff" * 1000)
    elif how == "dtype":
        weights = load_file(path)
        save_file({n: t.to(torch.int8) for n, t in weights.items()}, path)
    elif how == "tensor":
        weights = load_file(path)
        del weights[next(name for name in weights if name.endswith("0.mlp.up_proj.weight"))]
        save_file(weights, path)
    elif how == "shard":
        weights = load_file(path)
        index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        path.unlink()
    elif how == "config":
        (model / "config.json").write_text("{}")


@pytest.mark.parametrize(
    "how", ["missing", "truncated", "garbage", "dtype", "tensor", "shard", "config"]
)
def test_broken_checkpoints_leave_nothing(model: Path, tmp_path: Path, how: str) -> None:
    break_weights(model, how)
    done = dycoke("export", model, "-o", tmp_path / "bundle", "--dtype", "float32", *NO_KERNELS)
    assert_one_line(done, str(model))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--k 1", "k=1.0"),
        ("--p -0.1", "p=-0.1"),
        ("--l 6", "l=6 leaves nothing to prune in a model of 6 layers"),
        ("--ttm random", "ttm='random' cannot be exported"),
        ("--preset reference", "unknown preset 'reference'; allowed: tuned, paper"),
        ("--p 0 --memory 0.5", "--memory 0.5 has no effect with --p 0"),
        ("--granularity token --order importance", "--order importance has no effect with --gran"),
        ("--block-reduce max", "allowed there: block_reduce='sum', or order='raster'"),
        ("--dtype int8", "dtype='int8' is not allowed; allowed: float32, float16, bfloat16"),
        ("--tp 3", "tp=3 is impossible"),
        ("--max-frames 6", "max_frames=6"),
    ],
)
def test_export_refuses(tmp_path: Path, args: str, message: str) -> None:
    done = dycoke("export", MODEL_DIR, "-o", tmp_path / "bundle", *args.split())
    assert_one_line(done, message)
    assert list(tmp_path.iterdir()) == []


def test_export_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "keep").touch()
    assert_one_line(dycoke("export", MODEL_DIR, "-o", tmp_path), "exists already")
    assert_one_line(dycoke("export", tmp_path, "-o", tmp_path / "b"), str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["keep"]


def test_build_refuses(tmp_path: Path) -> None:
    bundle = demo_bundle(DyCokeConfig())
    assert_one_line(dycoke("build", bundle, "--target", "tpu"), "unknown target 'tpu'")
    assert_one_line(dycoke("build", tmp_path, "--target", "cpu"), "it is no bundle")
    done = dycoke("build", bundle, "--target", "cpu", "--tokens-per-block", "0")
    assert_one_line(done, "--tokens-per-block 0")
    half = tmp_path / "bf16"
    assert dycoke("export", MODEL_DIR, "-o", half, *NO_KERNELS).returncode == 0
    assert_one_line(dycoke("build", half, "--target", "cpu"), "bfloat16", "--dtype float32")
    done = dycoke("verify", half, "--source", MODEL_DIR, "--json")  # its graph is only checked
    assert done.returncode == 0, done.stdout
    assert_one_line(dycoke("ask", half, "Why?", "--video", CLIP), "nothing was built there")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("", "--video", CLIP), "the question is empty"),
        (("x" * 100_000, "--video", CLIP), "100000 bytes; allowed: up to 65536"),
        (("<|im_end|>", "--video", CLIP), "special token '<|im_end|>'"),
        (("Why?", "--video", CLIP, "--frames", "6"), "6 frames are not allowed"),
        (("Why?", "--video", CLIP, "--frames", "36"), "the nearest is 32"),
        (("Why?", "--video", CLIP, "--max-tokens", "0"), "max_tokens=0"),
        (("Why?", "--video", CLIP, "--max-tokens", "99999"), "positions"),
        (("Why?", "--video", CLIP, "--temperature", "-1"), "temperature=-1.0"),
        (
            ("Why?", "--video", CLIP, "--temperature", "0", "--top-p", "0.5"),
            "no effect on greedy answers (--temperature 0)",
        ),
        (("Why?", "--video", CLIP, "--top-p", "2"), "top_p=2.0"),
        (("Why?", "--video", CLIP, "--temperature", "0.5"), "no effect on greedy answers"),
        (("Why?", "--video", CLIP, "--seed", "1"), "no effect on greedy answers"),
        (("Why?", "--video", CLIP, "--stop", ""), "empty stop word"),
        (("Why?", "--video", "no.mp4"), "no.mp4: no such file"),
        (("Why?", "--video", __file__), "not a readable video"),
    ],
)
def test_ask_refuses(args: tuple[str | Path, ...], message: str) -> None:
    assert_one_line(dycoke("ask", demo_bundle(DyCokeConfig()), *args), message)


def test_a_truncated_video_is_refused(tmp_path: Path) -> None:
    video = tmp_path / "half.mp4"
    video.write_bytes(CLIP.read_bytes()[:10_000])
    done = dycoke("ask", demo_bundle(DyCokeConfig()), "Why?", "--video", video)
    assert_one_line(done, "half.mp4")
