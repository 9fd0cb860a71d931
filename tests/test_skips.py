"""skips.py, as CI runs it: in a pytest of its own, with and without pytest-xdist."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dycoke_trt.tests.skips import LIST

LISTED = next(iter(tomllib.loads(LIST.read_text())))
OTHER = "nsys is not installed"
WAYS = {  # to skip a test, and one that is no skip
    "inside": "def test_it():\n    pytest.skip({!r})\n",
    "mark": "@pytest.mark.skipif(True, reason={!r})\ndef test_it():\n    pass\n",
    "module": "pytest.skip({!r}, allow_module_level=True)\n",
    "expected": "@pytest.mark.xfail(reason={!r})\ndef test_it():\n    assert False\n",
}


def run(folder: Path, reasons: dict[str, str], *options: str, ci: str) -> tuple[int, str]:
    """Exit status and output where test_<name>.py is skipped for a reason, as its name says."""
    for name, reason in reasons.items():
        text = WAYS[name.partition("_")[0]].format(reason)
        (folder / f"test_{name}.py").write_text(f"import pytest\n{text}")
    (folder / "test_passes.py").write_text("def test_it():\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "dycoke_trt.tests.skips", *options],
        env=os.environ
        | {"CI": ci, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, cwd=folder, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")], ids=["alone", "xdist"])
def test_a_reason_that_is_not_listed_fails_the_run(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    reasons = {"inside": OTHER, "mark": OTHER, "module": OTHER, "inside_listed": LISTED}
    status, said = run(tmp_path, reasons | {"mark_part": LISTED[:-1]}, *options, ci="true")
    assert status == pytest.ExitCode.TESTS_FAILED, said
    _, title, named = said.partition("FAILED: skipped in CI for a reason not in skips.toml")
    assert title, said
    for test in ("test_inside.py::test_it", "test_mark.py::test_it", "test_module.py"):
        assert f"{test}: {OTHER}\n" in named
    assert f"test_mark_part.py::test_it: {LISTED[:-1]}\n" in named
    assert "test_inside_listed" not in named


def test_listed_reasons_are_counted(tmp_path: Path) -> None:
    reasons = {"inside": LISTED, "mark": LISTED, "module": LISTED, "expected": OTHER}
    status, said = run(tmp_path, reasons, ci="true")
    assert (status, f"   3 {LISTED}\n" in said, "FAILED" in said) == (0, True, False), said
    assert OTHER not in said.partition("by reason")[2]


def test_without_ci_any_reason_will_do(tmp_path: Path) -> None:
    status, said = run(tmp_path, {"inside": OTHER}, ci="")
    assert (status, f"   1 {OTHER}\n" in said, "FAILED" in said) == (0, True, False), said
