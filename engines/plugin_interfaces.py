"""TensorRT's two interfaces of a plugin, as its Python API makes and adds them.

The library has every plugin by both (engines/plugin/plugin_v3.h, plugin_v2.h); an engine is built
with one of them, and its record says which. V3 as models/eagle/model.py of TensorRT-LLM (06255cb)
adds its plugins, V2 as functional.gpt_attention (0071496) does. Nothing here imports tensorrt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.errors import DyCokeError
from .plugin_nodes import NAMESPACE

V3, V2 = "v3", "v2"
VERSIONS = {V3: "1", V2: "1-v2"}  # as the library registers them


def check_interface(name: str) -> str:
    """The name itself. Raises DyCokeError for one that is neither interface."""
    if name not in VERSIONS:
        raise DyCokeError(
            f"--plugin-interface {name!r} is not allowed; allowed: {', '.join(VERSIONS)}"
        )
    return name


def create_plugin(trt: Any, interface: str, name: str, fields: Mapping[str, Any]) -> Any:
    """The plugin `name` for a network. trt: the module tensorrt; fields: of plugin_fields.py.

    Raises DyCokeError where it is not registered, or refuses its fields.
    """
    registry, version = trt.get_plugin_registry(), VERSIONS[interface]
    find = registry.get_creator if interface == V3 else registry.get_plugin_creator
    creator = find(name, version, NAMESPACE)
    if creator is None:
        raise DyCokeError(
            f"plugin {name} version {version} is not registered; run: dycoke plugin build"
        )
    types = {
        np.dtype(np.int32): trt.PluginFieldType.INT32,
        np.dtype(np.int64): trt.PluginFieldType.INT64,
        np.dtype(np.float32): trt.PluginFieldType.FLOAT32,
        np.dtype(np.uint8): trt.PluginFieldType.UNKNOWN,
    }
    collection = trt.PluginFieldCollection(
        [trt.PluginField(key, value, types[value.dtype]) for key, value in fields.items()]
    )
    phase = (trt.TensorRTPhase.BUILD,) if interface == V3 else ()
    plugin = creator.create_plugin(name, collection, *phase)
    if plugin is None:
        raise DyCokeError(f"plugin {name} refused its fields; its message stands above")
    return plugin


def add_plugin(network: Any, interface: str, inputs: list[Any], plugin: Any) -> Any:
    """The network's layer of `plugin` on `inputs` (ITensors)."""
    if interface == V3:
        return network.add_plugin_v3(inputs, [], plugin)
    return network.add_plugin_v2(inputs, plugin)
