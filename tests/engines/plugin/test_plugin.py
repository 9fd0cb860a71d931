"""The compiled plugin beside a fake driver; what is run is in inside/.

Headers of TensorRT are not part of this project: DYCOKE_TENSORRT_INCLUDE names them (include/ of
github.com/NVIDIA/TensorRT, v10.14), and without it these tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines.plugin_build import _cuda_headers, build_plugin, tensorrt_version
from dycoke_trt.engines.plugin_library import plugin_library
from dycoke_trt.tests.support import assert_one_line, dycoke

HERE = Path(__file__).parent
INCLUDE = os.environ.get("DYCOKE_TENSORRT_INCLUDE", "")
needs_headers = pytest.mark.skipif(
    not INCLUDE, reason="DYCOKE_TENSORRT_INCLUDE does not name TensorRT's headers"
)
PLAIN = ("-O0", "-g1")
SANITIZE = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Of two ranks, each has half the heads.
IMAGES = """
import sys
from pathlib import Path
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.kernels.aot import write_images
from dycoke_trt.kernels.images import KernelShape, plugin_variants
for name, heads, dtype, ranks in (
    ("one", (4, 2), "float32", 1), ("two", (2, 1), "float32", 2),
    ("half_one", (4, 2), "float16", 1), ("half_two", (2, 1), "float16", 2),
):
    shape = KernelShape(*heads, 16, Dtype(dtype), ranks)
    targets = ["sm_90", "ptx"] if name == "one" else ["sm_90"]
    write_images(Path(sys.argv[1]) / name, shape, plugin_variants(shape, (8,)), targets)
"""


def lean_runtime() -> Path | None:
    """libnvinfer_lean of TensorRT's wheel tensorrt-lean-cu12-libs, if that is installed."""
    spec = find_spec("tensorrt_lean_libs")
    places = spec.submodule_search_locations if spec is not None else None
    return next(Path(places[0]).glob("libnvinfer_lean.so.*"), None) if places else None


LEAN = lean_runtime()


def compile_cpp(source: str, output: Path, *flags: str, kind: str = "-shared") -> None:
    done = subprocess.run(
        ["g++", "-std=c++17", "-fPIC", kind, "-Wall", "-Wextra", "-Werror", *flags,
         "-isystem", INCLUDE, "-isystem", str(_cuda_headers(None)), str(HERE / source),
         "-o", str(output), "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", IMAGES, str(folder)], env=environment, check=True)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugin(tmp_path_factory.mktemp("plugin"), Path(INCLUDE), flags=PLAIN)[0]


def run_inside(library: Path, images: Path, flags: tuple[str, ...], *tests: str) -> None:
    """Compiles the rest beside `library` and runs tests of inside/ on it."""
    folder = library.parent
    for name in ("one", "two", "half_one", "half_two"):
        (folder / name).symlink_to(images / name)
    compile_cpp("fake_cuda.cpp", folder / "libcuda.so.1", "-Wl,-soname,libcuda.so.1", *flags)
    compile_cpp("harness.cpp", folder / "libharness.so", *flags)
    environment = os.environ | {
        "DYCOKE_TEST_PLUGIN": str(folder),
        "DYCOKE_COUNTERS_FILE": str(folder / "counters.json"),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    if flags == SANITIZE:
        # libstdc++ too: ASan must find __cxa_throw when it starts, and Python does not load it.
        preload = [
            subprocess.run(
                ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libasan.so", "libstdc++.so")
        ]
        environment |= {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *(str(HERE / "inside" / test) for test in tests)],
        env=environment, capture_output=True, text=True, cwd=HERE.parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


@needs_headers
def test_life_cycle_and_numerics(library: Path, images: Path) -> None:
    run_inside(library, images, PLAIN, "test_life_cycle.py", "test_numerics.py")


@needs_headers
def test_life_cycle_and_numerics_with_sanitizers(tmp_path: Path, images: Path) -> None:
    library, _ = build_plugin(tmp_path, Path(INCLUDE), flags=SANITIZE)
    run_inside(library, images, SANITIZE, "test_life_cycle.py", "test_numerics.py")


@needs_headers
def test_the_library_says_what_it_is_for(library: Path) -> None:
    assert plugin_library(library) == library.resolve()


@needs_headers
def test_the_library_needs_nothing_of_nvidia(library: Path) -> None:
    """Three exports, no library of CUDA or TensorRT, and no symbol left open (-z defs)."""
    assert library.name == f"libdycoke_plugin_trt{tensorrt_version(Path(INCLUDE))[0]}.so"
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert names == {"getCreators", "setLoggerFinder", "initDycokePlugins", "dycokePluginMark"}
    dynamic = subprocess.run(
        ["readelf", "-d", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert "nvinfer" not in dynamic
    assert "cuda" not in dynamic


@pytest.mark.skipif(LEAN is None, reason="tensorrt-lean-cu12-libs is not installed")
@needs_headers  # the first reason that is given, where both are missing
@pytest.mark.parametrize("way", ["load", "preload", "both"])
def test_in_the_real_registry(library: Path, tmp_path: Path, way: str) -> None:
    """TensorRT's lean runtime has the real registry, and loads without a GPU."""
    host = tmp_path / "tritonserver"  # a preloaded library acts in servers alone
    compile_cpp("registry.cpp", host, kind="-pie")
    assert LEAN is not None
    preload = {"LD_PRELOAD": f"{LEAN} {library}", "DYCOKE_AUTOREGISTER": "1"}
    done = subprocess.run(
        [str(host), str(LEAN), *([str(library)] if way != "preload" else [])],
        env=os.environ | (preload if way != "load" else {}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = ("DycokeScore", "DycokeSelect", "DycokeRope")
    v3, v2 = ("".join(f"{name}/{version} " for name in names) for version in ("1", "1-v2"))
    assert (done.returncode, done.stdout) == (0, v3 + ("0" if way == "load" else v2))
    assert ("registered already" in done.stderr) == (way == "both")


@needs_headers
def test_a_preloaded_library_acts_in_servers_alone(library: Path, tmp_path: Path) -> None:
    """Which processes load TensorRT for it: `cat` under several names shows its own memory map."""
    stand_in = tmp_path / "libnvinfer.so.10"
    subprocess.run(["g++", "-shared", "-x", "c++", "/dev/null", "-o", str(stand_in)], check=True)
    environment = os.environ | {
        "LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(tmp_path), "DYCOKE_AUTOREGISTER": "1"
    }  # fmt: skip
    cat = shutil.which("cat")
    assert cat is not None

    def loads_tensorrt(*command: str | Path, **changes: str) -> bool:
        done = subprocess.run(
            [*command, "/proc/self/maps"],
            env=environment | changes, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert str(library) in done.stdout
        return "libnvinfer" in done.stdout

    for name in ("tritonserver", "triton_python_backend_stub", "trtllmExecutorWorker"):
        shutil.copy(cat, tmp_path / name)
        assert loads_tensorrt(tmp_path / name)
        assert not loads_tensorrt(tmp_path / name, DYCOKE_AUTOREGISTER="0")
        # As mpirun starts it: env first, which stays out of it.
        assert loads_tensorrt("/usr/bin/env", tmp_path / name)
    (tmp_path / "server").symlink_to(tmp_path / "tritonserver")
    assert loads_tensorrt(tmp_path / "server")
    for name in ("mpirun", "tritonserver2", "python3.12", "mytritonserver"):
        shutil.copy(cat, tmp_path / name)
        assert not loads_tensorrt(tmp_path / name)
    assert not loads_tensorrt("/usr/bin/env", cat)


def test_missing_headers_are_one_line(tmp_path: Path) -> None:
    done = dycoke("plugin", "build", "-o", tmp_path / "out", "--tensorrt-include", tmp_path)
    assert_one_line(done, "NvInferRuntime.h", str(tmp_path), "--tensorrt-include")
    assert not (tmp_path / "out").exists()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "NvInferRuntime.h").touch()
    version = tmp_path / "NvInferVersion.h"
    version.write_text("#define NV_TENSORRT_MAJOR 8 //!< major\n")
    with pytest.raises(DyCokeError, match="holds TensorRT 8; the plugin needs 10"):
        build_plugin(tmp_path, tmp_path)
    with pytest.raises(DyCokeError, match=r"no cuda\.h"):
        build_plugin(tmp_path, tmp_path, tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DyCokeError, match="no-such-compiler is not installed"):
        build_plugin(tmp_path, tmp_path)
