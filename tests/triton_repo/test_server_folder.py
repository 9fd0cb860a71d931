"""Logs of failed servers are kept, a bounded number of them; all else goes with its server."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from dycoke_trt.triton_repo.server_folder import MOST_KEPT, server_folder

DAY = 86_400  # seconds


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def failed_server() -> Path:
    with server_folder() as folder:
        folder.log.write_text("why")
        folder.life.touch()
        folder.keep = True
    return folder.path


def test_nothing_is_left_of_a_server_that_did_not_fail(place: Path) -> None:
    with server_folder() as folder:
        folder.log.write_text("fine")
    assert list(place.iterdir()) == []


def test_of_a_failed_server_its_log_is_left() -> None:
    folder = failed_server()
    assert (folder / "tritonserver.log").read_text() == "why"
    assert not (folder / "life").exists()


def test_the_oldest_logs_go_and_servers_that_run_stay(place: Path) -> None:
    folders = []
    with server_folder() as running:
        for age in range(MOST_KEPT + 3, 0, -1):
            folders.append(failed_server())
            for file in folders[-1].iterdir():  # as if it had failed that many days ago
                os.utime(file, (DAY * (100 - age), DAY * (100 - age)))
        folders.append(failed_server())
        assert set(place.iterdir()) == {running.path, *folders[-MOST_KEPT:]}
