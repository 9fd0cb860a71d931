"""Which plugin library a build or a server takes, checked before it is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..core.errors import DyCokeError
from ..runtime.tensorrt_library import TENSORRT
from ..runtime.trtllm.plugin import LIBRARY, LIBRARY_VARIABLE, PLUGIN_ABI
from .plugin_release import check_release

_MARK = re.compile(rb"dycoke-plugin abi=(\d+) tensorrt=(\d+);")  # engines/plugin/entry.cpp


def plugin_library(given: Path | None = None) -> Path:
    """The plugin library: `given`, else DYCOKE_PLUGIN_LIBRARY, else build/plugin/ here.

    Raises DyCokeError for none, for a file that is no shared library or not the one that its
    release's description is of, and for one that another release of this toolkit built, or for
    another TensorRT.
    """
    named = given or (Path(v) if (v := os.environ.get(LIBRARY_VARIABLE)) else None)
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
    here = TENSORRT.version
    if here is not None and here.partition(".")[0] != str(major):
        raise DyCokeError(
            f"{path} is for TensorRT {major}, here it is {here}; run: dycoke plugin build"
        )
    return path.resolve()


def _built_library() -> Path:
    """What `dycoke plugin build` left below this directory; one library serves one TensorRT."""
    folder = Path("build") / "plugin"
    major = (TENSORRT.version or "10").partition(".")[0]
    libraries = sorted(folder.glob("libdycoke_plugin*.so"))
    ours = [path for path in libraries if path.stem.endswith(f"_trt{major}")]
    return next(iter(ours or libraries), folder / LIBRARY)
