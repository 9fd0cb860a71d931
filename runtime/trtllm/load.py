"""A bundle's TensorRT-LLM engine in this process, ready to run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...bundle.files import open_bundle
from ...bundle.paths import LLM_ENGINE, engine_directory
from ...bundle.record import read_record
from ...core.errors import DyCokeError
from ..installed import CONTAINER, installed
from ..limits import RequestLimits
from .engine import ExecutorEngine
from .plugin import LIBRARY, LIBRARY_VARIABLE, load_plugins


def load_executor(bundle: Path, build: str, limits: RequestLimits | None = None) -> ExecutorEngine:
    """The engine as `dycoke build --target build` made it, its plugins registered before.

    Raises DyCokeError where nothing was built, for engines that do not fit this machine, and where
    TensorRT-LLM is not installed.
    """
    manifest, engines = open_bundle(bundle), engine_directory(bundle, build)
    record = read_record(engines, manifest, bundle, installed=installed())
    bindings = _bindings()
    # `dycoke serve` preloads a library, which registers by itself, and names it here: done once.
    if LIBRARY in record.files:
        load_plugins(Path(os.environ.get(LIBRARY_VARIABLE) or engines / LIBRARY))
    engine = ExecutorEngine(bindings, engines / LLM_ENGINE, record, manifest, limits)
    if not engine.leads:
        engine.close()  # another rank's: works for the first one until that ends
    return engine


def _bindings() -> Any:
    try:
        import tensorrt_llm.bindings.executor as bindings
    except ImportError as error:
        raise DyCokeError(
            f"TensorRT-LLM cannot be imported ({error}); use {CONTAINER} (docs/tensorrt.md)"
        ) from None
    return bindings
