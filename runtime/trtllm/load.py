"""A bundle's TensorRT-LLM engine in this process, ready to run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...bundle.paths import LLM_ENGINE, engine_directory
from ...bundle.record import open_build
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
    manifest, record = open_build(bundle, build, installed=installed())
    engines = engine_directory(bundle, build)
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
