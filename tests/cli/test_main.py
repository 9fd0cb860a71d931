"""The command as installed: what tests see of it in their own process, a user sees of a new one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from dycoke_trt.cli import main
from dycoke_trt.tests.support import DYCOKE, assert_one_line, dycoke, spawned


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("floors", "--model", "llava-ov-0.5b", "--gpu", "l4"), 0),
        (("flops", "--k", "1"), 2),  # a DyCokeError
        (("flops", "--nonesuch"), 2),  # typer's
        ((), 2),  # the help, as for every command without arguments
    ],
)
def test_in_this_process_and_in_a_new_one(args: tuple[str, ...], status: int) -> None:
    here, there = dycoke(*args), spawned(*args)
    assert (here.returncode, here.stdout, here.stderr) == (
        there.returncode, there.stdout, there.stderr
    )  # fmt: skip
    assert here.returncode == status


def test_a_user_error_is_one_line() -> None:
    assert_one_line(spawned("ask", "nowhere", "Why?"), "nowhere")


def test_a_bug_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: str) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(main, "app", broken)
    done = dycoke("flops")
    assert done.returncode == 1
    assert "in broken" in done.stderr
    assert done.stderr.endswith("ValueError: a bug\n")


def test_what_children_and_native_code_write_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def loud(**_: str) -> None:
        print("here")
        os.write(1, b"native\n")
        subprocess.run([sys.executable, "-c", "import sys; sys.exit('a child')"], check=False)

    monkeypatch.setattr(main, "app", loud)
    done = dycoke("flops")
    assert sorted(done.stdout.split()) == ["here", "native"]
    assert done.stderr == "a child\n"
    assert DYCOKE.is_file()
