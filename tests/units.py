"""Which tests go to one process, and in which order, where pytest-xdist runs several.

A file is a unit: what its tests share is made once. Files that ask the same server are one unit.
Long units begin first, so that no process is left alone with one at the end.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadFileScheduling

# Files of tests/triton_repo that ask the server of its conftest.py.
ON_THE_SERVER = (
    "test_access.py",
    "test_cancel.py",
    "test_client_docs.py",
    "test_ensemble.py",
    "test_fairness.py",
    "test_fuzz_models.py",
    "test_metrics.py",
    "test_overload.py",
    "test_refusals.py",
)
SERVER = "tests/triton_repo/conftest.py"
UNITS = {f"tests/triton_repo/{name}": SERVER for name in ON_THE_SERVER}
# Longest first; any other takes less than ten seconds.
LONG = (
    SERVER,
    "tests/bench/test_profile.py",
    "tests/kernels/test_interpreter.py",
    "tests/bench/test_reliability.py",
    "tests/bench/test_bench.py",
    "tests/triton_repo/test_executor_model.py",
    "tests/eval/test_shapes.py",
    "tests/triton_repo/test_launcher.py",
    "tests/cli/test_bundles.py",
    "tests/triton_repo/test_cuda_target.py",
    "tests/runtime/test_generate.py",
    "tests/triton_repo/test_server_end.py",
    "tests/cli/test_demo.py",
    "tests/bench/test_gpu.py",
    "tests/bench/test_make_checkpoint.py",
    "tests/export/test_nvidia_compiler.py",
    "tests/triton_repo/test_interpreter_lock.py",
    "tests/kernels/test_aot.py",
)


class UnitScheduling(LoadFileScheduling):
    """xdist's `loadfile` with these units, the longest that is left first."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return UNITS.get(file, file)

    def _assign_work_unit(self, node: Any) -> None:
        longest = next((unit for unit in LONG if unit in self.workqueue), None)
        if longest is not None:
            self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)
