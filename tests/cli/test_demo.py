"""`dycoke demo`, what `make demo` runs: every stage, real server, answers as the oracle's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dycoke_trt.cli.demo import TOKENS_PER_BLOCK, P
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo import CLIPS_DIR, MODEL_DIR
from dycoke_trt.demo.network import frame_features
from dycoke_trt.demo.normalise import to_pixels
from dycoke_trt.eval.shapes import Answerer
from dycoke_trt.eval.study import Setting
from dycoke_trt.runtime.video.read import read_video
from dycoke_trt.tests.support import assert_one_line, dycoke, spawned

CLIPS = json.loads((CLIPS_DIR / "clips.json").read_text())


def processes_that_name(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


def test_the_demo_answers_right_and_leaves_no_process(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    done = spawned("demo", "-o", output)
    assert done.returncode == 0, (done.stdout, done.stderr)
    stages = [line.split()[0] for line in done.stdout.splitlines() if " s  " in line]
    assert stages == ["export", "verify", "build", "serve", "ask", "stop"]
    assert f"{len(CLIPS)} answers right" in done.stdout
    assert (output / "engines" / "cpu" / "record.json").is_file()
    assert processes_that_name(str(output)) == []


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip["task"])
def test_right_is_what_the_oracle_says(clip: dict[str, str]) -> None:
    answerer = Answerer(MODEL_DIR)
    setting = Setting(DyCokeConfig.tuned().with_changes(p=P), TOKENS_PER_BLOCK)
    with torch.no_grad():
        features = frame_features(
            answerer.model, to_pixels(read_video(CLIPS_DIR / clip["file"], 16))
        )
    generation, _ = answerer.generate(features, clip["question"], setting)
    assert answerer.decode(generation.tokens) == clip["answer"]


def test_a_wrong_number_of_frames_is_one_line() -> None:
    assert_one_line(dycoke("demo", "--frames", "6"), "6 frames", "multiples of 4")
