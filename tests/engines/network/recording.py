"""A TensorRT network as data: what the stand-in for `tensorrt` wrote down, layer by layer."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class RecordedLayer:
    """kind: of INetworkDefinition.add_<kind>; for plugins with `:` and their name behind it.

    inputs, outputs: numbers of tensors; None is an input that was left out. values: what the layer
    was made with: arrays, numbers, names of enumeration members; a plugin's fields by name.
    """

    kind: str
    name: str
    inputs: list[int | None]
    outputs: list[int]
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def plugin(self) -> str | None:
        return self.kind.partition(":")[2] or None

    def digest(self) -> str:
        """Of everything about the layer but its own name."""
        made = hashlib.sha256(f"{self.kind} {self.inputs} {self.outputs}".encode())
        for key, value in sorted(self.values.items()):
            if isinstance(value, np.ndarray):
                made.update(f"{key} {value.dtype} {value.shape}".encode() + value.tobytes())
            else:
                made.update(f"{key} {value!r}".encode())
        return made.hexdigest()


@dataclass
class Recording:
    """inputs, outputs: tensor numbers by name; dtypes: of every tensor, by number."""

    release: str  # of the TensorRT-LLM whose files defined the network
    inputs: dict[str, int]
    outputs: dict[str, int]
    dtypes: dict[int, str]
    layers: list[RecordedLayer]

    def plugins(self, name: str) -> list[RecordedLayer]:
        return [layer for layer in self.layers if layer.plugin == name]

    def producer(self, tensor: int) -> RecordedLayer:
        (found,) = [layer for layer in self.layers if tensor in layer.outputs]
        return found

    def to_bytes(self) -> bytes:
        return pickle.dumps(self)

    @staticmethod
    def from_bytes(data: bytes) -> Recording:
        found = pickle.loads(data)
        assert isinstance(found, Recording)
        return found
