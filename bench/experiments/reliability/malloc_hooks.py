"""Python's debug hooks in the processes of models: they end at the first wrong use of its memory.

The stub's interpreter is isolated, so PYTHONMALLOC does not reach it (python_backend's pybind11
initialises it so): a preloaded library sets the hooks before it starts.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

COMPILER = shutil.which("cc") or shutil.which("g++")
_SOURCE = """
#define _GNU_SOURCE 1
#include <dlfcn.h>
__attribute__((constructor)) static void set_hooks(void) {
  void *set = dlsym(RTLD_DEFAULT, "PyMem_SetupDebugHooks"); /* only stubs hold a Python */
  if (set) ((void (*)(void))set)();
}
"""


def hooked_environment(folder: Path) -> dict[str, str]:
    """Variables of a server whose models run with the hooks; folder: for the library."""
    assert COMPILER is not None
    source, library = folder / "hooks.c", folder / "hooks.so"
    source.write_text(_SOURCE)
    options = ["-x", "c", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run([COMPILER, *options], check=True)
    return {"LD_PRELOAD": str(library)}
