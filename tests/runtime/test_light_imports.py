"""What parts of the package do without: on a bare machine, and where an import costs seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

STUB = "triton_python_backend_utils"  # of the server's own Python
CASES = {
    # torch, triton, numpy and safetensors, nothing else
    "the native backend on a bare machine": (
        ["av", "onnx", "onnxruntime", "PIL", "polygraphy", "pydantic", "rich", "tokenizers",
         "transformers", "typer"],
        ["core.ttm", "kernels.images", "export.llm", "bundle.llm_reader", "runtime.scheduler",
         "runtime.native.cuda", "runtime.native.weights", "runtime.vision_torch"],
    ),
    # torch alone takes two seconds and 200 MB of each process
    "counting, planning, starting a server, and the models that compute nothing": (
        ["torch", "onnxruntime", "transformers", "triton"],
        ["cost.floors", "cost.flops", "engines.build_plan", "cli.main", "cli.serve",
         "triton_repo.repository", "triton_repo.launcher", "triton_repo.models.preprocessing",
         "triton_repo.models.postprocessing", "triton_repo.models.dycoke_bls"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_imports(case: str) -> None:
    absent, modules = CASES[case]
    program = (
        "import importlib, sys\n"
        "from unittest.mock import MagicMock\n"
        f"sys.modules[{STUB!r}] = MagicMock()\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        f"for name in {modules!r}: importlib.import_module('dycoke_trt.' + name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
