"""A bundle's TensorRT-LLM engine in this process, ready to run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...bundle.files import open_bundle
from ...bundle.record import read_record
from ...core.errors import DyCokeError
from ...engines.build import LLM_DIRECTORY
from ...engines.installed import CONTAINER, PLUGIN_VARIABLE, installed
from ...engines.llm_nodes import load_plugins
from ...engines.plugin_nodes import LIBRARY
from ..limits import RequestLimits
from .engine import ExecutorEngine


def load_executor(bundle: Path, build: str, limits: RequestLimits | None = None) -> ExecutorEngine:
    """The engine as `dycoke build --target build` made it, its plugins registered before.

    Raises DyCokeError where nothing was built, for engines that do not fit this machine, and where
    TensorRT-LLM is not installed.
    """
    manifest, engines = open_bundle(bundle), bundle / "engines" / build
    record = read_record(engines, manifest, bundle, installed=installed())
    bindings = _bindings()
    # `dycoke serve` preloads a library, which registers by itself, and names it here: done once.
    if LIBRARY in record.files:
        load_plugins(Path(os.environ.get(PLUGIN_VARIABLE) or engines / LIBRARY))
    engine = ExecutorEngine(bindings, engines / LLM_DIRECTORY, record, manifest, limits)
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
