"""The examples of docs/client.md run as they stand, on a real server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dycoke_trt.demo import CLIPS_DIR
from dycoke_trt.runtime.protocol import CLIENT_INPUTS, CLIENT_OUTPUTS
from dycoke_trt.tests.triton_repo.conftest import Server

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_examples_run(number: int, server: Server, tmp_path: Path) -> None:
    language, source = BLOCKS[number]
    if language == "sh" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    source = source.replace("localhost:8001", server.grpc).replace("localhost:8000", server.http)
    (tmp_path / "video.mp4").symlink_to(CLIPS_DIR / "describe.mp4")
    program = [sys.executable, "-c"] if language == "python" else ["bash", "-ec"]
    done = subprocess.run(
        [*program, source], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert '"error"' not in done.stdout, done.stdout


def test_the_tables_are_the_contract() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([A-Z0-9]+) \|", PAGE, re.MULTILINE)
    assert rows == [(spec.name, spec.dtype) for spec in (*CLIENT_INPUTS, *CLIENT_OUTPUTS)]
