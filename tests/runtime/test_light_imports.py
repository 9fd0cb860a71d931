"""The native backend on a bare machine: torch, triton, numpy and safetensors, nothing else."""

import subprocess
import sys

ABSENT = [
    "av", "onnx", "onnxruntime", "PIL", "polygraphy", "pydantic", "rich", "tokenizers",
    "transformers", "typer",
]  # fmt: skip
MODULES = [
    "core.ttm", "kernels.images", "export.llm", "bundle.llm_reader", "runtime.scheduler",
    "runtime.native.cuda", "runtime.native.weights", "runtime.vision_torch",
]  # fmt: skip


def test_the_native_backend_needs_little() -> None:
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        f"for name in {MODULES!r}: importlib.import_module('dycoke_trt.' + name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
