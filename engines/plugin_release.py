"""The plugin library as a release file: runs on any Linux of the last decade, without a compiler.

`zig c++` (the wheel ziglang) compiles against the symbols of a chosen glibc and links its own C++
library statically, which g++ of a newer Linux cannot: its libstdc++ asks for the glibc it was built
on. The file that goes with the library says what it is, and is checked where it is used.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.errors import DyCokeError
from ..runtime.trtllm.plugin import PLUGIN_ABI
from .plugin_build import build_plugin, tensorrt_version
from .plugin_interfaces import VERSIONS

GLIBC = (2, 17)  # manylinux2014: every distribution that runs a driver for CUDA 13
FLAGS = ("-O2", "-g0", "-Wl,-s")


def build_release(
    directory: Path, tensorrt_include: Path | None = None, cuda_include: Path | None = None
) -> Path:
    """Writes libdycoke_plugin_trt<major>.so and its .json into `directory`; returns the library.

    Raises DyCokeError without ziglang, for missing headers, and for a library that would need more
    than GLIBC, or a C++ library.
    """
    if find_spec("ziglang") is None:
        raise DyCokeError("--release compiles with zig, which is not here; pip install ziglang")
    machine = platform.machine()
    target = f"{machine}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
    compiler = (sys.executable, "-m", "ziglang", "c++", "-target", target)
    library, headers = build_plugin(
        directory, tensorrt_include, cuda_include, flags=FLAGS, compiler=compiler
    )
    content = library.read_bytes()
    needs = needed_versions(content)
    if set(needs) != {"GLIBC"} or needs["GLIBC"] > GLIBC:
        library.unlink()
        raise DyCokeError(f"the library needs {needs}, allowed: GLIBC up to {GLIBC}, nothing else")
    major, minor, patch = tensorrt_version(headers)
    described = {
        "library": library.name,
        "sha256": sha256(content).hexdigest(),
        "machine": machine,
        "glibc": ".".join(map(str, needs["GLIBC"])),
        "plugin_abi": PLUGIN_ABI,
        "plugin_interfaces": VERSIONS,
        "tensorrt_major": major,
        "tensorrt_headers": f"{major}.{minor}.{patch}",
        "dycoke-trt": version("dycoke-trt"),
        "zig": version("ziglang"),
    }
    library.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    return library


def needed_versions(library: bytes) -> dict[str, tuple[int, ...]]:
    """The newest symbol version of each kind that a library asks for: {"GLIBC": (2, 17)}.

    From the names in its string table, where they stand for themselves.
    """
    newest: dict[str, tuple[int, ...]] = {}
    for kind, number in re.findall(rb"\0(GLIBC|GLIBCXX|CXXABI|GCC)_(\d[\d.]*)(?=\0)", library):
        numbers = tuple(map(int, number.split(b".")))
        newest[kind.decode()] = max(newest.get(kind.decode(), numbers), numbers)
    return newest


def check_release(library: Path) -> None:
    """Raises DyCokeError if the .json beside a library is not of these bytes; without one, nothing
    is known and nothing checked."""
    path = library.with_suffix(".json")
    if not path.is_file():
        return
    try:
        described: dict[str, Any] = json.loads(path.read_text())
        expected = str(described["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DyCokeError(f"{path} is no description of a plugin library") from None
    got = sha256(library.read_bytes()).hexdigest()
    if got != expected:
        raise DyCokeError(
            f"{library} has sha256 {got[:12]}, {path.name} says {expected[:12]}; copy both again"
        )
