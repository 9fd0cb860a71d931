"""A damaged part is found while it is loaded, whatever its size and wherever the damage is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dycoke_trt.bundle.loading import checked_parts
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime.native.load import load_built_engine
from dycoke_trt.runtime.prompt import load_tokenizer
from dycoke_trt.runtime.vision import load_vision
from dycoke_trt.tests.support import assert_one_line, demo_bundle, dycoke, spawned


def damaged(tmp_path: Path, name: str, offset: int, size: int = 1) -> Path:
    """A copy of the demo bundle with other bytes there, and every size as it was."""
    bundle = tmp_path / "bundle"
    shutil.copytree(demo_bundle(DyCokeConfig(k=0.5, l=2, p=0.5)), bundle)
    with (bundle / name).open("r+b") as file:
        file.seek(offset)
        before = file.read(size)
        file.seek(offset)
        file.write(bytes(byte ^ 1 for byte in before))
    return bundle


def test_weights_are_checked(tmp_path: Path) -> None:
    bundle = damaged(tmp_path, "llm/rank0.safetensors", 400_000, 200_000)
    with pytest.raises(DyCokeError, match=r"rank0\.safetensors has sha256 \w+\.\.\., .* says"):
        load_built_engine(bundle)
    free = [option for name in ("http", "grpc", "metrics") for option in (f"--{name}-port", "0")]
    done = spawned("serve", bundle, "--threads", "1", *free, "--log-file", tmp_path / "log")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "rank0.safetensors has sha256" in done.stderr.splitlines()[-1]


def test_the_vision_graph_is_checked(tmp_path: Path) -> None:
    size = (demo_bundle(DyCokeConfig(k=0.5, l=2, p=0.5)) / "vision_ttm.onnx").stat().st_size
    bundle = damaged(tmp_path, "vision_ttm.onnx", size // 2)
    with pytest.raises(DyCokeError, match=r"vision_ttm\.onnx has sha256"):
        load_vision(bundle, "cpu", 1)


def test_damage_explains_what_loading_says_of_it(tmp_path: Path) -> None:
    """The file's first byte, so that it is no JSON any more."""
    bundle = damaged(tmp_path, "tokenizer/tokenizer.json", 0)
    with pytest.raises(DyCokeError, match=r"tokenizer\.json has sha256"):
        load_tokenizer(bundle)


def test_other_parts_are_not_read(tmp_path: Path) -> None:
    bundle = damaged(tmp_path, "llm/rank0.safetensors", 400_000)
    with checked_parts(bundle, "tokenizer/"):
        load_tokenizer(bundle)
    assert_one_line(dycoke("ask", bundle, "Why?"), "rank0.safetensors has sha256")
