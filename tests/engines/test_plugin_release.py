"""Release files of the plugin: what a library asks for, and whether it is the one described."""

from __future__ import annotations

import json
import os
import subprocess
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines.plugin_library import plugin_library
from dycoke_trt.engines.plugin_release import GLIBC, build_release, needed_versions
from dycoke_trt.runtime.trtllm.plugin import PLUGIN_ABI
from dycoke_trt.tests.support import assert_one_line, dycoke

INCLUDE = os.environ.get("DYCOKE_TENSORRT_INCLUDE", "")
MARK = f"\x7fELF dycoke-plugin abi={PLUGIN_ABI} tensorrt=10;".encode("latin-1")


def by_objdump(library: Path) -> dict[str, tuple[int, ...]]:
    listed = subprocess.run(
        ["objdump", "-T", str(library)], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, tuple[int, ...]] = {}
    for line in listed.splitlines():
        for word in line.replace("(", " ").replace(")", " ").split():
            kind, _, number = word.partition("_")
            if kind in ("GLIBC", "GLIBCXX", "CXXABI", "GCC") and number[:1].isdigit():
                numbers = tuple(map(int, number.split(".")))
                found[kind] = max(found.get(kind, numbers), numbers)
    return found


def test_needed_versions_are_those_of_objdump(tmp_path: Path) -> None:
    """On a library that g++ makes here, which asks for this machine's C++ library."""
    source, library = tmp_path / "a.cpp", tmp_path / "a.so"
    source.write_text(
        "#include <cstdlib>\n#include <sstream>\n#include <thread>\n"
        'std::string f(int x) { std::ostringstream s; s << x << getenv("A");'
        " std::thread([] {}).join(); return s.str(); }\n"
    )
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    needed = needed_versions(library.read_bytes())
    assert needed == by_objdump(library)
    assert {"GLIBC", "GLIBCXX", "CXXABI"} <= set(needed)


def test_a_library_is_the_one_that_was_described(tmp_path: Path) -> None:
    library = tmp_path / "libdycoke_plugin_trt10.so"
    library.write_bytes(MARK)
    described = {"sha256": sha256(MARK).hexdigest()}
    library.with_suffix(".json").write_text(json.dumps(described))
    assert plugin_library(library) == library
    library.write_bytes(MARK + b"more")
    with pytest.raises(DyCokeError, match=r"has sha256 .*, libdycoke_plugin_trt10\.json says"):
        plugin_library(library)
    library.with_suffix(".json").write_text("[]")
    with pytest.raises(DyCokeError, match="is no description of a plugin library"):
        plugin_library(library)


@pytest.mark.skipif(find_spec("ziglang") is not None, reason="ziglang is installed")
def test_without_zig(tmp_path: Path) -> None:
    done = dycoke("plugin", "build", "--release", "-o", tmp_path)
    assert_one_line(done, "--release compiles with zig", "pip install ziglang")


@pytest.mark.skipif(
    not INCLUDE or find_spec("ziglang") is None,
    reason="needs DYCOKE_TENSORRT_INCLUDE and the wheel ziglang",
)
def test_a_release_needs_an_old_glibc_alone(tmp_path: Path) -> None:
    library = build_release(tmp_path, Path(INCLUDE))
    assert plugin_library(library) == library
    assert set(by_objdump(library)) == {"GLIBC"}
    assert by_objdump(library)["GLIBC"] <= GLIBC
    described = json.loads(library.with_suffix(".json").read_text())
    assert described["sha256"] == sha256(library.read_bytes()).hexdigest()
    assert described["plugin_abi"] == PLUGIN_ABI
    assert (described["tensorrt_major"], described["glibc"]) == (10, "2.17")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert names == {"getCreators", "setLoggerFinder", "initDycokePlugins", "dycokePluginMark"}
