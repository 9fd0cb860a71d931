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
    "accelerate", "cuda", "datasets", "h5py", "modelopt", "mpi4py", "onnx_graphsurgeon", "pandas",
    "psutil", "pulp", "pynvml", "strenum",
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

    def find_spec(self, name: str, *_: Any) -> Any:
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
    from dycoke_trt.tests.engines.network import fake_tensorrt

    sys.dont_write_bytecode = True
    sys.modules["tensorrt"] = fake_tensorrt
    sys.meta_path.insert(0, _Finder(EMPTY))
    sys.meta_path.append(_Finder(UNUSED))
    for name in ("tensorrt_llm", "tensorrt_llm.models", "tensorrt_llm.models.qwen"):
        package = types.ModuleType(name)
        package.__path__ = [str(source.joinpath(*name.split(".")))]
        sys.modules[name] = package
    bindings = {"DataType": fake_tensorrt.DataType, "KVCacheType": KVCacheType}
    _give("tensorrt_llm.bindings", **bindings)
    _give("tensorrt_llm.bindings.BuildInfo", ENABLE_MULTI_DEVICE=False)
    # The package gave older Pythons what `enum` has.
    _give("strenum", StrEnum=enum.StrEnum, LowercaseStrEnum=enum.StrEnum)
    _without_psutil()
    torch.cuda.set_device = lambda *_: None
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_name = lambda *_: "NVIDIA A10"  # 0.17 looks up what it knows of it

    from tensorrt_llm.models import modeling_utils
    from tensorrt_llm.models.qwen.model import QWenForCausalLM

    _give(
        "tensorrt_llm.models",
        MODEL_MAP={"Qwen2ForCausalLM": QWenForCausalLM},
        PretrainedConfig=modeling_utils.PretrainedConfig,
        PretrainedModel=modeling_utils.PretrainedModel,
    )


def _give(module: str, **values: Any) -> None:
    """Names in a module that is stood for."""
    vars(importlib.import_module(module)).update(values)


def _without_psutil() -> None:
    """A build reports its peak memory at its end."""
    if isinstance(importlib.import_module("psutil"), _Unused):
        process = types.SimpleNamespace(
            memory_info=lambda: types.SimpleNamespace(rss=0), children=lambda **_: []
        )
        _give("psutil", Process=lambda: process)


def main() -> None:
    install(Path(os.environ["TRTLLM_SOURCE_DIR"]))
    from tensorrt_llm.commands.build import main as build

    build()


if __name__ == "__main__":
    main()
