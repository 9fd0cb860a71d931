"""The plugin library as engines, servers and records know it, and loading it."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from ...core.errors import DyCokeError

PLUGIN_ABI = 3  # of names, inputs, fields and image format; recorded with every engine
LIBRARY = "libdycoke_plugins.so"  # as it lies beside an engine
INIT = "initDycokePlugins"
LIBRARY_VARIABLE = "DYCOKE_PLUGIN_LIBRARY"  # environment: the one to load
AUTOREGISTER = "DYCOKE_AUTOREGISTER"  # environment: register when preloaded into a server
COUNTERS = "DYCOKE_COUNTERS_FILE"  # environment: where decisions are counted; %p is the process


@cache  # a build defines one network per rank
def load_plugins(library: Path) -> None:
    """Loads the plugin library and registers its plugins; DyCokeError where it refuses."""
    try:
        initialise = getattr(ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL), INIT)
    except (OSError, AttributeError) as error:
        raise DyCokeError(f"{library}: not loadable ({error}); run: dycoke plugin build") from None
    initialise.restype = ctypes.c_bool
    initialise.argtypes = [ctypes.c_void_p]
    if not initialise(None):
        raise DyCokeError(
            f"{library} was built for another TensorRT (its message stands above); run: "
            "dycoke plugin build"
        )
