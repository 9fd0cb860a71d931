"""What this machine has for building and running engines; found without importing any of it."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..bundle.record import Installed
from ..core.errors import DyCokeError
from .plugin_nodes import LIBRARY, PLUGIN_ABI
from .plugin_release import check_release
from .this_gpu import visible_gpus

CONTAINER = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
PLUGIN_VARIABLE = "DYCOKE_PLUGIN_LIBRARY"
_MARK = re.compile(rb"dycoke-plugin abi=(\d+) tensorrt=(\d+);")  # engines/plugin/entry.cpp
_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")  # what the package has been called


def version_of(*packages: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in packages:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def installed() -> Installed:
    """For the checks of engine records; what is not here is None, and not compared."""
    gpus = visible_gpus()
    return Installed(
        sm=gpus[0].sm if gpus else None,
        tensorrt=version_of(*_TENSORRT),
        tensorrt_llm=version_of("tensorrt-llm"),
        plugin_abi=PLUGIN_ABI,
    )


def require_tensorrt(*, llm: bool) -> tuple[str, str | None]:
    """Versions of TensorRT and, with `llm`, of TensorRT-LLM.

    Raises DyCokeError that names what is missing and the container that has it.
    """
    tensorrt, tensorrt_llm = version_of(*_TENSORRT), version_of("tensorrt-llm")
    found = {"tensorrt": tensorrt, "polygraphy": version_of("polygraphy")}
    if llm:
        found["tensorrt_llm"] = tensorrt_llm
    if missing := [name for name, number in found.items() if number is None]:
        raise DyCokeError(
            f"{', '.join(missing)} not installed, so no engine can be built here; build in "
            f"{CONTAINER} (docs/tensorrt.md), or see the plan with --dry-run"
        )
    assert tensorrt is not None
    return tensorrt, tensorrt_llm


def plugin_library(given: Path | None = None) -> Path:
    """The plugin library: `given`, else DYCOKE_PLUGIN_LIBRARY, else build/plugin/ here.

    Raises DyCokeError for none, for a file that is no shared library or not the one that its
    release's description is of, and for one that another release of this toolkit built, or for
    another TensorRT.
    """
    named = given or (Path(v) if (v := os.environ.get(PLUGIN_VARIABLE)) else None)
    path = named or _built_library()
    if not path.is_file():
        raise DyCokeError(f"{path}: no plugin library there; run: dycoke plugin build")
    content = path.read_bytes()
    if not content.startswith(b"\x7fELF"):
        raise DyCokeError(f"{path} is no shared library; run: dycoke plugin build")
    check_release(path)
    mark = _MARK.search(content)
    abi, major = (int(mark[1]), int(mark[2])) if mark else (None, None)
    if abi != PLUGIN_ABI:
        raise DyCokeError(
            f"{path} has plugin ABI {abi}, this release has {PLUGIN_ABI}; run: dycoke plugin build"
        )
    here = version_of(*_TENSORRT)
    if here is not None and here.partition(".")[0] != str(major):
        raise DyCokeError(
            f"{path} is for TensorRT {major}, here it is {here}; run: dycoke plugin build"
        )
    return path.resolve()


def _built_library() -> Path:
    """What `dycoke plugin build` left below this directory; one library serves one TensorRT."""
    folder = Path("build") / "plugin"
    major = (version_of(*_TENSORRT) or "10").partition(".")[0]
    found = sorted(folder.glob("libdycoke_plugin*.so"))
    ours = [path for path in found if path.stem.endswith(f"_trt{major}")]
    return next(iter(ours or found), folder / LIBRARY)
