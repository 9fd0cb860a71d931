"""The plugin's life through the C++ harness: fields in, tensors in and out, launches recorded."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(os.environ.get("DYCOKE_TEST_PLUGIN", "."))
BUILD, RUNTIME = 0, 1
FIELD_TYPES = {"uint8": 8, "int32": 5, "int64": 10, "float32": 1}  # PluginFieldType
DATA_TYPES = {"float32": 0, "float16": 1, "int32": 3, "int64": 8}  # DataType
NUMPY = {number: name for name, number in DATA_TYPES.items()}


class CField(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("type", ctypes.c_int32), ("data", ctypes.c_void_p),
        ("length", ctypes.c_int32),
    ]  # fmt: skip


class CTensor(ctypes.Structure):
    _fields_ = [
        ("rank", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8), ("type", ctypes.c_int32),
        ("data", ctypes.c_void_p),
    ]  # fmt: skip


def tensors(*arrays: np.ndarray[Any, Any]) -> ctypes.Array[CTensor]:
    made = (CTensor * len(arrays))()
    for one, array in zip(made, arrays, strict=True):
        assert array.flags.c_contiguous
        one.rank, one.type, one.data = array.ndim, DATA_TYPES[array.dtype.name], array.ctypes.data
        one.sizes[: array.ndim] = array.shape
    return made


@dataclass
class Launch:
    entry: str
    grid: tuple[int, int, int]
    values: list[bytes]


LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_int,
    ctypes.POINTER(ctypes.POINTER(ctypes.c_ubyte)), ctypes.POINTER(ctypes.c_size_t),
)  # fmt: skip


@dataclass
class World:
    """The libraries, loaded once per process; `run` is called for every launch."""

    cuda: ctypes.CDLL
    harness: ctypes.CDLL
    library: int
    interface: str = "v3"  # by which plugins are made
    run: Callable[[Launch], None] | None = None
    launches: list[Launch] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        def launched(entry: bytes, grid: Any, count: int, values: Any, sizes: Any) -> int:
            try:
                raw = [bytes(values[i][: sizes[i]]) for i in range(count)]
                launch = Launch(entry.decode(), (grid[0], grid[1], grid[2]), raw)
                self.launches.append(launch)
                if self.run is not None:
                    self.run(launch)
                return 0
            except BaseException as error:  # a callback must not raise into C++
                self.errors.append(error)
                return 1

        self._callback = LAUNCH(launched)
        self.cuda.fake_on_launch(self._callback)

    def reset(self, sm: int = 90, memory: int = 1 << 20) -> None:
        self.use("v3")
        self.cuda.fake_reset(sm, ctypes.c_size_t(memory))
        self.harness.harness_clear()
        self.launches.clear()
        self.errors.clear()
        self.run = None

    def use(self, interface: str) -> None:
        self.interface = interface
        self.harness.harness_use(int(interface[1:]))

    @property
    def messages(self) -> str:
        text: bytes = self.harness.harness_messages()
        return text.decode()

    def create(self, name: str, fields: dict[str, Any], phase: int = RUNTIME) -> Plugin | None:
        made = (CField * len(fields))()
        for one, (key, array) in zip(made, fields.items(), strict=True):
            one.name, one.type = key.encode(), FIELD_TYPES[array.dtype.name]
            one.data, one.length = array.ctypes.data, array.size
        handle = self.harness.harness_create(name.encode(), made, len(fields), phase)
        return Plugin(self, name, handle) if handle else None

    def deserialized(self, name: str, data: bytes) -> Plugin | None:
        handle = self.harness.harness_deserialize(name.encode(), data, len(data))
        return Plugin(self, name, handle) if handle else None

    def attached(self, name: str, fields: dict[str, Any]) -> Plugin:
        """As a runtime makes it: from fields, attached to a context."""
        plugin = self.create(name, fields)
        assert plugin is not None, self.messages
        there = plugin.attach()
        assert there is not None, self.messages
        plugin.destroy()
        return there


@dataclass
class Plugin:
    world: World
    name: str
    handle: int

    def destroy(self) -> None:
        self.world.harness.harness_destroy(self.handle)

    def attach(self) -> Plugin | None:
        handle = self.world.harness.harness_attach(self.handle)
        return Plugin(self.world, self.name, handle) if handle else None

    def clone(self) -> Plugin:
        return Plugin(self.world, self.name, self.world.harness.harness_clone(self.handle))

    def serialize(self) -> bytes:
        size = self.world.harness.harness_serialize(self.handle, None, -1)
        data = ctypes.create_string_buffer(size)
        self.world.harness.harness_serialize(self.handle, data, size)
        return data.raw

    def deserialized(self) -> Plugin:
        plugin = self.world.deserialized(self.name, self.serialize())
        assert plugin is not None, self.world.messages
        return plugin

    def infer(self, *inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Empty outputs of the types and shapes that the plugin says."""
        count = self.world.harness.harness_outputs(self.handle)
        out = (CTensor * count)()
        done = self.world.harness.harness_infer(
            self.handle, tensors(*inputs), len(inputs), out, count
        )
        assert done == 0, self.world.messages
        return [np.full(one.sizes[: one.rank], 77, NUMPY[one.type]) for one in out]

    def workspace(self, inputs: list[Any], outputs: list[Any]) -> int:
        size: int = self.world.harness.harness_workspace(
            self.handle, tensors(*inputs, *outputs), len(inputs), len(outputs)
        )
        return size

    def enqueue(self, *inputs: np.ndarray[Any, Any]) -> tuple[int, list[np.ndarray[Any, Any]]]:
        """(status, outputs). What lies behind the workspace must not be written."""
        outputs = self.infer(*inputs)
        size = self.workspace(list(inputs), outputs)
        memory = np.full(size + 512, 0x5A, np.uint8)
        begin = -memory.ctypes.data % 256
        status = self.world.harness.harness_enqueue(
            self.handle, tensors(*inputs, *outputs), len(inputs), len(outputs),
            ctypes.c_void_p(memory.ctypes.data + begin),
        )  # fmt: skip
        assert (memory[begin + size :] == 0x5A).all()
        if self.world.errors:
            raise self.world.errors[0]
        return status, outputs


@cache
def load() -> World:
    """The same one for all tests of a process: the driver has one callback."""
    cuda = ctypes.CDLL(str(FOLDER / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
    harness = ctypes.CDLL(str(FOLDER / "libharness.so"), ctypes.RTLD_GLOBAL)
    for name in ("open", "create", "attach", "clone", "deserialize"):
        getattr(harness, f"harness_{name}").restype = ctypes.c_void_p
    for name in ("serialize", "workspace"):
        getattr(harness, f"harness_{name}").restype = ctypes.c_int64
    for name in ("messages", "creator"):
        getattr(harness, f"harness_{name}").restype = ctypes.c_char_p
    pointer = [ctypes.c_void_p]
    for name, more in {
        "destroy": [], "attach": [], "clone": [], "outputs": [], "init": [], "set_finder": [],
        "serialize": [ctypes.c_char_p, ctypes.c_int64],
        "infer": [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int],
        "combinations": [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int],
        "configure": [ctypes.c_void_p, ctypes.c_int, ctypes.c_int],
        "workspace": [ctypes.c_void_p, ctypes.c_int, ctypes.c_int],
        "enqueue": [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p],
    }.items():  # fmt: skip
        getattr(harness, f"harness_{name}").argtypes = pointer + more
    harness.harness_create.argtypes = [
        ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int
    ]  # fmt: skip
    harness.harness_deserialize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64]
    cuda.fake_mark_device.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    cuda.fake_unmark_device.argtypes = [ctypes.c_void_p]
    cuda.fake_fail.argtypes = [ctypes.c_char_p]
    (path,) = FOLDER.glob("libdycoke_plugin_trt*.so")
    library = harness.harness_open(str(path).encode())
    assert library, harness.harness_messages()
    return World(cuda, harness, library)


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name / "manifest.json").read_text())
    return found


def scalar(kind: str, raw: bytes) -> int | float:
    value: int | float = struct.unpack({"fp32": "<f", "i32": "<i", "i64": "<q"}[kind], raw)[0]
    return value
