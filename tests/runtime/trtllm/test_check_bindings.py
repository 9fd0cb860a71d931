"""The check of executor bindings, on the stand-in, and on bindings that are not what we call."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dycoke_trt.runtime.trtllm.check_bindings import METHODS, check_bindings
from dycoke_trt.tests.trtllm_standin import values
from dycoke_trt.tests.trtllm_standin.build import FOLDER


def bindings(**changes: Any) -> SimpleNamespace:
    names = [name for name in dir(values) if not name.startswith("_")]
    made = {name: getattr(values, name) for name in names}
    executor = SimpleNamespace(**dict.fromkeys(METHODS))
    return SimpleNamespace(**(made | {"Executor": executor} | changes))


def test_every_configuration_is_made() -> None:
    assert check_bindings(bindings()) == 4 + 4 + len(METHODS)


def test_bindings_of_another_release() -> None:
    def older(*, enable_block_reuse: bool, max_tokens: int) -> None: ...

    with pytest.raises(TypeError, match="free_gpu_memory_fraction"):
        check_bindings(bindings(KvCacheConfig=older))
    without = {k: v for k, v in vars(bindings()).items() if k != "PromptTuningConfig"}
    with pytest.raises(AttributeError, match="PromptTuningConfig"):
        check_bindings(SimpleNamespace(**without))
    less = SimpleNamespace(**dict.fromkeys(METHODS[1:]))
    with pytest.raises(AttributeError, match=METHODS[0]):
        check_bindings(bindings(Executor=less))


def test_doctor_asks_in_a_process(tmp_path: Path) -> None:
    script = "from dycoke_trt.cli.doctor import _bindings; f = _bindings(); print(f.status, f.note)"

    def asked(folder: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(folder)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    assert asked(tmp_path).startswith("missing")
    assert asked(FOLDER).startswith("ok")
    (tmp_path / "tensorrt_llm").mkdir()
    (tmp_path / "tensorrt_llm" / "__init__.py").write_text("raise ImportError('no libcuda')")
    assert asked(tmp_path).startswith("warning --llm executor will not work: ImportError: no lib")
