"""The generated model repository, and the command that writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from dycoke_trt.bundle.files import open_bundle
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.runtime import protocol as p
from dycoke_trt.runtime.limits import RequestLimits
from dycoke_trt.runtime.preparation import Preparation
from dycoke_trt.runtime.video.limits import VideoLimits
from dycoke_trt.tests.support import assert_one_line, demo_bundle, dycoke
from dycoke_trt.triton_repo.config_pbtxt import ModelConfig
from dycoke_trt.triton_repo.repository import parse_version, write_repository

CONFIG = DyCokeConfig(k=0.5, l=2, p=0.5)
MODELS = {p.PREPROCESSING, p.VISION, p.LLM, p.POSTPROCESSING, p.ENSEMBLE, p.BLS}


def config_of(repository: Path, model: str) -> str:
    return (repository / model / "config.pbtxt").read_text()


def test_models_and_shims(tmp_path: Path) -> None:
    bundle = demo_bundle(CONFIG)
    repository = write_repository(bundle, tmp_path / "models", bundle_path=Path("/mnt/b"))
    assert {path.name for path in repository.iterdir() if path.is_dir()} == MODELS
    for model in MODELS:
        assert (repository / model / "1").is_dir()
        assert config_of(repository, model).startswith(f'name: "{model}"\n')
        assert (repository / model / "1" / "model.py").is_file() == (model != p.ENSEMBLE)
    assert 'string_value: "/mnt/b"' in config_of(repository, p.LLM)
    assert str(bundle) not in config_of(repository, p.LLM)


def test_visual_tokens_are_shown_to_clients(tmp_path: Path) -> None:
    repository = write_repository(demo_bundle(CONFIG), tmp_path / "models")
    line = next(x for x in config_of(repository, p.ENSEMBLE).splitlines() if '"visual_tokens"' in x)
    literal = line.partition("string_value: ")[2].removesuffix(" } }")
    table = json.loads(json.loads(literal))
    assert table["16"] == 361
    assert list(table) == [str(frames) for frames in range(4, 33, 4)]


@pytest.mark.parametrize(
    ("version", "written"), [("2.51.0", False), ("2.63.0", False), ("2.64.0", True), ("3.0", True)]
)
def test_fields_newer_than_the_server_are_left_out(
    tmp_path: Path, version: str, written: bool
) -> None:
    repository = write_repository(demo_bundle(CONFIG), tmp_path / "m", triton_version=version)
    assert ("max_inflight_requests" in config_of(repository, p.ENSEMBLE)) == written


def test_what_postprocessing_takes_comes_from_the_llm_step_alone(tmp_path: Path) -> None:
    """The server refuses to combine tensors of a decoupled step with others."""
    repository = write_repository(demo_bundle(CONFIG), tmp_path / "models")
    steps = config_of(repository, p.ENSEMBLE).split("  step [")[1:]
    maps = {}
    for step in steps:
        name = step.partition('model_name: "')[2].partition('"')[0]
        values = {
            kind: {
                line.partition('value: "')[2].partition('"')[0]
                for line in step.splitlines()
                if kind in line
            }
            for kind in ("input_map", "output_map")
        }
        maps[name] = values
    assert maps[p.POSTPROCESSING]["input_map"] <= maps[p.LLM]["output_map"]
    made = set().union(*(step["output_map"] for step in maps.values()))
    used = set().union(*(step["input_map"] for step in maps.values()))
    inside = {name for name in made if name.startswith("_")}
    assert inside <= used  # a tensor that no step uses is refused when the server loads


def test_a_repository_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    bundle, target = demo_bundle(CONFIG), tmp_path / "models"
    write_repository(bundle, target)
    (target / "stale").mkdir()
    write_repository(bundle, target)
    assert not (target / "stale").exists()
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").touch()
    with pytest.raises(DyCokeError, match="no model repository"):
        write_repository(bundle, other)
    assert (other / "cat.jpg").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("version", ["", "2", "2.51.0.1", "new", "2.x"])
def test_versions_that_are_none(version: str) -> None:
    with pytest.raises(DyCokeError, match="allowed"):
        parse_version(version)


def test_values_are_quoted() -> None:
    text = ModelConfig("m", (), (), parameters={"bundle": '/a "b" \\ c'}).text()
    assert 'string_value: "/a \\"b\\" \\\\ c"' in text


def test_the_command(tmp_path: Path) -> None:
    done = dycoke("repo", demo_bundle(CONFIG), "-o", tmp_path / "models")
    assert done.returncode == 0, done.stderr
    assert f"tritonserver --model-repository={tmp_path / 'models'}" in done.stdout
    assert_one_line(dycoke("repo", tmp_path, "-o", tmp_path / "x"), "bundle.json", "dycoke export")
    assert_one_line(
        dycoke("repo", demo_bundle(CONFIG), "-o", tmp_path / "x", "--triton-version", "new"),
        "'new'",
    )


def test_limits_of_videos_reach_preprocessing(tmp_path: Path) -> None:
    bundle, clip = demo_bundle(CONFIG), Path(__file__).parents[2] / "demo/clips/describe.mp4"
    options = ["--max-video-bytes", "1000", "--max-video-seconds", "2.5"]
    done = dycoke("repo", str(bundle), "-o", str(tmp_path / "models"), *options)
    assert done.returncode == 0, done.stderr
    lines = config_of(tmp_path / "models", p.PREPROCESSING).splitlines()
    written = dict(re.findall(r'key: "(\w+)".*string_value: "([^"]*)"', "\n".join(lines)))
    limits = VideoLimits.from_parameters(written)
    assert limits == VideoLimits(max_bytes=1000, max_seconds=2.5)
    prepare = Preparation(bundle, open_bundle(bundle), limits)
    with pytest.raises(
        DyCokeError, match=r"^video_file_input: .* allowed: up to 1,000 \(--max-video-bytes raises"
    ):
        prepare(b"Why?", file=clip.read_bytes(), num_frames=4)
    frames = np.zeros((4, 20, 20, 3), np.uint8)
    with pytest.raises(DyCokeError, match=r"^video_bytes_input: 400 pixels of a frame; allowed"):
        Preparation(bundle, open_bundle(bundle), VideoLimits(max_pixels=399))(b"?", video=frames)


def test_limits_of_ask() -> None:
    clip = Path(__file__).parents[2] / "demo/clips/describe.mp4"
    small = ["--max-video-pixels", "100", "--video", str(clip), "Why?"]
    assert_one_line(dycoke("ask", str(demo_bundle(CONFIG)), *small), "--max-video-pixels raises it")
    assert_one_line(dycoke("ask", "--server", "localhost:1", *small), "give it to dycoke serve")


def test_lines_and_processes_are_bounded_as_asked(tmp_path: Path) -> None:
    """A line may fill the batch that was built for (16), and the line of the LLM step."""
    requests = RequestLimits(max_queue=5, max_wait_seconds=1.5, preprocessors=3)
    repository = write_repository(demo_bundle(CONFIG), tmp_path / "models", requests=requests)
    policy = (
        "dynamic_batching { default_queue_policy { max_queue_size: 21 timeout_action: REJECT "
        "default_timeout_microseconds: 1500000 } }"
    )
    for model in (p.PREPROCESSING, p.VISION):
        assert policy in config_of(repository, model)
    for model in (p.LLM, p.POSTPROCESSING, p.BLS):
        assert "dynamic_batching" not in config_of(repository, model)
    for model in (p.PREPROCESSING, p.VISION):
        config = config_of(repository, model)
        assert 'key: "preprocessors" value { string_value: "3" }' in config
        assert 'key: "max_queue" value { string_value: "5" }' in config
    assert 'key: "max_queue" value { string_value: "5" }' in config_of(repository, p.BLS)
