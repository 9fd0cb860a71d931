"""Compiles the TensorRT plugin (engines/plugin/) with g++ and two sets of headers, nothing more.

No CUDA toolkit and no TensorRT library are needed: the plugin finds the driver and the registry in
the process that loads it. TensorRT's headers are not part of this project; its public repository
has them (include/), and so do its packages for C++.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ..core.errors import DyCokeError
from ..runtime.trtllm.plugin import PLUGIN_ABI

SOURCES = Path(__file__).parent / "plugin"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror")
_TENSORRT_PLACES = ("/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu",
                    "/usr/local/tensorrt/include", "/usr/include")  # fmt: skip


def build_plugin(
    directory: Path,
    tensorrt_include: Path | None = None,
    cuda_include: Path | None = None,
    *,
    flags: tuple[str, ...] = ("-O2",),
    compiler: tuple[str, ...] = (),
) -> tuple[Path, Path]:
    """Writes libdycoke_plugin_trt<major>.so into `directory`; returns it and TensorRT's headers.

    The name holds the major version of TensorRT that it is for: one library serves one of them.
    Without `tensorrt_include` the usual places are tried; without `cuda_include` the triton wheel
    and a toolkit. compiler: a command that takes g++'s options, by default CXX or g++. Raises
    DyCokeError in one line for a missing compiler, missing headers, or what
    the compiler says first.
    """
    compiler = compiler or (os.environ.get("CXX", "g++"),)
    if shutil.which(compiler[0]) is None:
        raise DyCokeError(f"the compiler {compiler[0]} is not installed; install g++ or set CXX")
    tensorrt = _tensorrt_headers(tensorrt_include)
    cuda = _cuda_headers(cuda_include)
    major = tensorrt_version(tensorrt)[0]
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / f"libdycoke_plugin_trt{major}.so"
    with tempfile.TemporaryDirectory(dir=directory) as work:
        draft = Path(work) / library.name
        command = [
            *compiler, "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread",
            f"-DDYCOKE_PLUGIN_ABI={PLUGIN_ABI}", *WARNINGS, *flags,
            "-isystem", str(tensorrt), "-isystem", str(cuda),
            *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(draft),
            f"-Wl,-soname,{library.name}", f"-Wl,--version-script={SOURCES / 'exports.map'}",
            "-ldl",
        ]  # fmt: skip
        if not any("sanitize" in flag for flag in flags):  # the host brings the sanitiser's symbols
            command.append("-Wl,-z,defs")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.splitlines()
            first = next((line for line in lines if "error" in line), "no message")
            raise DyCokeError(f"{' '.join(compiler)} cannot build the plugin: {first}")
        draft.replace(library)
    return library, tensorrt


def tensorrt_version(include: Path) -> tuple[int, int, int]:
    """Of headers: (10, 14, 1); from 10.11 on the numbers stand under other names."""
    text = (include / "NvInferVersion.h").read_text()
    for name in ("TRT_{}_ENTERPRISE", "NV_TENSORRT_{}"):
        numbers = [
            re.search(rf"#define {name.format(part)} (\d+)", text)
            for part in ("MAJOR", "MINOR", "PATCH")
        ]
        major, minor, patch = (int(number[1]) if number else 0 for number in numbers)
        if major:
            if major < 10:
                raise DyCokeError(
                    f"{include} holds TensorRT {major}; the plugin needs 10 or later (10.14)"
                )
            return major, minor, patch
    raise DyCokeError(f"{include / 'NvInferVersion.h'} names no version of TensorRT")


def _tensorrt_headers(given: Path | None) -> Path:
    for place in [given] if given else map(Path, _TENSORRT_PLACES):
        if (place / "NvInferRuntime.h").is_file():
            return place
    where = str(given) if given else ", ".join(_TENSORRT_PLACES)
    raise DyCokeError(
        f"no NvInferRuntime.h in {where}; name the headers of TensorRT 10.14 (include/ of "
        "github.com/NVIDIA/TensorRT) with --tensorrt-include"
    )


def _cuda_headers(given: Path | None) -> Path:
    places = [given] if given else []
    if given is None:
        spec = find_spec("triton")
        if spec is not None and spec.origin is not None:
            places.append(Path(spec.origin).parent / "backends" / "nvidia" / "include")
        home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        places.append(Path(home) / "include")
    for place in places:
        if (place / "cuda.h").is_file() and (place / "cuda_runtime_api.h").is_file():
            return place
    raise DyCokeError(
        f"no cuda.h and cuda_runtime_api.h in {', '.join(map(str, places))}; run: "
        "pip install 'dycoke-trt[kernels]', or name them with --cuda-include"
    )
