"""The same tests on TensorRT-LLM's own executor (-m trtllm, on a GPU) and on a stand-in for it.

The stand-in (tests/trtllm_standin) has the native backend behind it, so that here the tests prove
our side of the bindings and themselves; what they say of engines and plugins, they say on a GPU.
DYCOKE_TEST_MODEL names another checkpoint than the demo's, whose heads are only 32 wide.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from dycoke_trt.bundle.files import open_bundle
from dycoke_trt.bundle.record import read_record
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.engines.build_plan import plan_build
from dycoke_trt.engines.model import model_of_bundle
from dycoke_trt.engines.target_gpus import find_target_gpu
from dycoke_trt.engines.tensorrt import build_engines
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime.nvidia_smi import visible_gpus
from dycoke_trt.runtime.trtllm.counters import COUNTS, ROWS, counters_path, read_counters
from dycoke_trt.runtime.trtllm.engine import ExecutorEngine
from dycoke_trt.runtime.trtllm.load import load_executor
from dycoke_trt.runtime.trtllm.plugin import COUNTERS
from dycoke_trt.tests.trtllm_standin.build import BATCH, BLOCK, TARGET, write_engines

PRUNED = DyCokeConfig(k=0.5, l=2, p=0.5)
STOCK = DyCokeConfig(k=0.5, l=2, p=0.0)
_PATIENCE = 10.0  # seconds until counters that do not move have failed


@dataclass
class Backend:
    """What runs the engines. exact: it computes what the reference computes, bit for bit."""

    exact: bool
    build: Callable[[DyCokeConfig], tuple[Path, str]]  # -> bundle, target
    counters: Path

    @contextmanager
    def engine(self, config: DyCokeConfig = PRUNED, **options: int) -> Iterator[ExecutorEngine]:
        """options: of the record, such as a smaller max_num_tokens, which cuts prompts."""
        bundle, target = self.build(config)
        engine = load_executor(bundle, target)
        if options:
            engine.close()
            engine = self._changed(bundle, target, options)
        try:
            yield engine
        finally:
            engine.close()

    def _changed(self, bundle: Path, target: str, options: dict[str, int]) -> ExecutorEngine:
        import tensorrt_llm.bindings.executor as bindings

        manifest, folder = open_bundle(bundle), bundle / "engines" / target
        record = read_record(folder, manifest, bundle)
        changed = record.model_copy(update={"options": record.options | options})
        return ExecutorEngine(bindings, folder / "llm", changed, manifest)

    def bundle(self, config: DyCokeConfig = PRUNED) -> Path:
        return self.build(config)[0]

    def counted(self) -> dict[str, int]:
        """Rows by decision and moves so far, of this process."""
        path = counters_path(str(self.counters), os.getpid())
        return read_counters(path) if path.exists() else dict.fromkeys(COUNTS, 0)

    def counted_at_last(self, expected: int, before: dict[str, int]) -> dict[str, int]:
        """Counts since `before`, once there are `expected` rows: they come every second."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            now = {name: count - before[name] for name, count in self.counted().items()}
            if sum(now[name] for name in ROWS) >= expected or time.monotonic() > deadline:
                return now
            time.sleep(0.01)  # leaves the core to what counts


def _bundle(folder: Path, config: DyCokeConfig, *kernel_targets: str) -> Path:
    bundle = folder / f"bundle-{config.p}"
    model = Path(os.environ.get("DYCOKE_TEST_MODEL", MODEL_DIR))
    export_bundle(
        model, bundle, config, dtype="float16", max_frames=16, kernel_targets=kernel_targets
    )
    return bundle


def _on_standin(folder: Path) -> Callable[[DyCokeConfig], tuple[Path, str]]:
    @cache
    def build(config: DyCokeConfig) -> tuple[Path, str]:
        bundle = _bundle(folder, config)
        write_engines(bundle)
        return bundle, TARGET

    return build


def _on_gpu(folder: Path) -> Callable[[DyCokeConfig], tuple[Path, str]]:
    @cache
    def build(config: DyCokeConfig) -> tuple[Path, str]:
        target = find_target_gpu("this-gpu")
        bundle = _bundle(folder, config, "all")
        plan = plan_build(
            model_of_bundle(bundle), target, tokens_per_block=BLOCK, max_batch=BATCH,
            kv_fraction=0.1,
        )  # fmt: skip
        build_engines(bundle, plan)
        return bundle, target.name

    return build


@pytest.fixture(
    scope="session",
    params=[
        "stand-in",
        pytest.param(
            "tensorrt_llm",
            marks=[
                pytest.mark.trtllm,
                pytest.mark.skipif(
                    find_spec("tensorrt_llm") is None or not visible_gpus(),
                    reason="needs a GPU and TensorRT-LLM",
                ),
            ],
        ),
    ],
)  # fmt: skip
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("trtllm")
    counters = folder / "counters.%p.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(COUNTERS, str(counters))  # the plugins read it once
        if request.param == "tensorrt_llm":
            yield Backend(False, _on_gpu(folder), counters)
            return
        _use_standin(patch)
        yield Backend(True, _on_standin(folder), counters)


def _use_standin(patch: pytest.MonkeyPatch) -> None:
    """`import tensorrt_llm` finds the stand-in, whatever is installed."""
    import sys

    from dycoke_trt.tests.trtllm_standin.build import FOLDER

    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        patch.delitem(sys.modules, name)
    patch.syspath_prepend(str(FOLDER))
