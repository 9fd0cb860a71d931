"""trtllm-build without a GPU: TensorRT-LLM's own Python files define the network, it is recorded.

    TRTLLM_SOURCE_DIR=... python -m dycoke_trt.tests.engines.network.record --checkpoint_dir ...

takes trtllm-build's options; rank{r}.engine is then a Recording. What is compiled there is stood
for: tensorrt itself (fake_tensorrt.py), tensorrt_llm.bindings, the CUDA device. So are packages
that are not installed here and that no network needs. Package __init__ files that import
everything else of TensorRT-LLM (runtimes, tools, other models) are not run.
"""

from __future__ import annotations

import enum
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import Any

# Third-party packages of quantisation, conversion and runtimes.
UNUSED = (
    "onnx_graphsurgeon", "datasets", "modelopt", "mpi4py", "cuda", "pynvml", "h5py", "psutil",
    "transformer_engine", "nvtx", "pulp", "flashinfer", "colored", "accelerate", "pandas",
)  # fmt: skip
# Modules of TensorRT-LLM that are compiled, run engines, or ask a GPU: what is imported of them by
# name is an empty class.
EMPTY = ("tensorrt_llm.bindings", "tensorrt_llm.runtime", "tensorrt_llm.profiler")


class _Unused(types.ModuleType):
    """Whatever is named in it is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules below `names`, all empty."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if any(name == one or name.startswith(one + ".") for one in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Unused(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class KVCacheType(enum.Enum):
    """tensorrt_llm.bindings.KVCacheType; names of any case, as KVCacheTypeFromString takes them."""

    CONTINUOUS, PAGED, DISABLED = range(3)

    @classmethod
    def from_string(cls, text: str) -> KVCacheType:
        return cls[text.upper()]

    @classmethod
    def _missing_(cls, value: object) -> KVCacheType:
        return cls.from_string(str(value))


def install(source: Path) -> None:
    """Makes `tensorrt_llm` importable from source/tensorrt_llm, which is read only."""
    import torch

    from . import fake_tensorrt

    sys.dont_write_bytecode = True
    sys.modules["tensorrt"] = fake_tensorrt
    sys.meta_path.insert(0, _Finder(EMPTY))
    sys.meta_path.append(_Finder(UNUSED))
    for name in ("tensorrt_llm", "tensorrt_llm.models", "tensorrt_llm.models.qwen"):
        package = types.ModuleType(name)
        package.__path__ = [str(source.joinpath(*name.split(".")))]
        sys.modules[name] = package
    bindings = importlib.import_module("tensorrt_llm.bindings")
    bindings.DataType = fake_tensorrt.DataType
    bindings.KVCacheType = KVCacheType
    strings = types.ModuleType("strenum")  # the package gave older Pythons what `enum` has
    strings.StrEnum = strings.LowercaseStrEnum = enum.StrEnum  # type: ignore[attr-defined]
    sys.modules["strenum"] = strings
    info = importlib.import_module("tensorrt_llm.bindings.BuildInfo")
    info.ENABLE_MULTI_DEVICE = False
    _without_psutil()
    torch.cuda.set_device = lambda *_: None
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_name = lambda *_: "NVIDIA A10"  # 0.17 looks up what it knows of it

    from tensorrt_llm.models.qwen.model import QWenForCausalLM

    from tensorrt_llm.models import modeling_utils

    models = sys.modules["tensorrt_llm.models"]
    models.MODEL_MAP = {"Qwen2ForCausalLM": QWenForCausalLM}
    models.PretrainedConfig = modeling_utils.PretrainedConfig
    models.PretrainedModel = modeling_utils.PretrainedModel


def _without_psutil() -> None:
    """A build reports its peak memory at its end."""
    psutil = importlib.import_module("psutil")
    if isinstance(psutil, _Unused):
        process = types.SimpleNamespace(
            memory_info=lambda: types.SimpleNamespace(rss=0), children=lambda recursive: []
        )
        psutil.Process = lambda: process


def main() -> None:
    install(Path(os.environ["TRTLLM_SOURCE_DIR"]))
    from tensorrt_llm.commands.build import main as build

    build()


if __name__ == "__main__":
    main()
