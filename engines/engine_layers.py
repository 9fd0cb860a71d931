"""The layers of an engine as its builder describes them; whether any changed a type in silence.

An engine can be asked for its layers only on a GPU. With profiling verbosity DETAILED the builder
of TensorRT for RTX logs the same description when it is done, so it is read from there: one
message, "Layers:", a line per layer, then the tensors that go in and out.

A strongly typed network promises that every tensor keeps its type. The compiler still rewrites what
it fuses: TensorRT for RTX 1.7.1 computes an fp32 product between two casts in 16 bits, its constant
matrix included. Types inside one fused kernel are not described, so this sees constants and what
goes between kernels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from ..core.errors import DyCokeError

BEGINNING = "Layers:"
# Names of the description -> names of the library's DataType.
_TYPES = {"Float": "FLOAT", "Half": "HALF", "BFloat16": "BF16"}
_TENSOR = re.compile(r"Name: (.*?), Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
_IO = re.compile(r"Name: (.*?), IOMode: (\w+), DataType: (\w+), Dimensions: \[([-\d,]*)\]")
_ORIGIN = re.compile(r"\[ONNX Layer: (.*?)\]")


@dataclass(frozen=True)
class Tensor:
    """dtype: as the library's DataType calls it, FLOAT and so on, or as the description does."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class EngineLayer:
    """One kernel. nodes: of the ONNX graph that it computes, or computes a part of."""

    name: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]


def parse_layers(text: str) -> list[EngineLayer]:
    """text: the message that begins with BEGINNING."""
    layers = []
    for line in text.splitlines():
        fields = re.match(
            r"Name: (.*?), LayerType: \w+, Inputs: (.*), Constants: (.*), Outputs: (.*), "
            r"TacticName: .*Metadata: (.*)$",
            line,
        )
        if fields:
            inputs, constants, outputs = (_tensors(fields[i]) for i in (2, 3, 4))
            nodes = tuple(_ORIGIN.findall(fields[5]))
            layers.append(EngineLayer(fields[1], inputs, constants, outputs, nodes))
    return layers


def parse_io(text: str) -> dict[str, tuple[str, Tensor]]:
    """Tensors of the engine: name -> (Input or Output, tensor). text: as in `parse_layers`."""
    return {
        name: (mode, Tensor(name, _shape(shape), _TYPES.get(dtype, dtype)))
        for name, mode, dtype, shape in _IO.findall(text)
    }


def check_types(layers: list[EngineLayer], network: Any, who: str) -> None:
    """Raises DyCokeError, naming layer and nodes, where a floating-point type of an engine's
    constants or outputs is none that the network has there.

    network: an INetworkDefinition, as the parser filled it. who: the compiler, for the message.
    """
    types = NetworkTypes(network)
    described = {node for layer in layers for node in layer.nodes}
    for layer in layers:
        if not layer.nodes:
            continue
        compared = (
            (
                "holds constants",
                [t for t in layer.constants if prod(t.shape) > 1],
                # Where the graph has none, the compiler pads: with what the nodes compute in.
                types.constants_into(layer.nodes, described) or types.outputs_of(layer.nodes),
            ),
            ("has outputs", list(layer.outputs), types.outputs_of(layer.nodes)),
        )
        for what, tensors, allowed in compared:
            for tensor in tensors:
                if tensor.dtype in _TYPES.values() and tensor.dtype not in allowed:
                    raise DyCokeError(
                        f"{who} changed a type: layer {layer.name} {what} in {tensor.dtype}, where "
                        f"the graph has {', '.join(sorted(allowed)) or 'none'} "
                        f"(nodes {', '.join(layer.nodes)})"
                    )


class NetworkTypes:
    """Types of a network's tensors by the ONNX node that makes or takes them."""

    def __init__(self, network: Any) -> None:
        self._constants: dict[str, set[str]] = defaultdict(set)
        self._outputs: dict[str, set[str]] = defaultdict(set)
        self._sources: dict[str, set[str]] = defaultdict(set)  # node -> nodes before it
        folded: set[str] = set()  # tensors that hold constants, perhaps reshaped or cast
        makers: dict[str, str] = {}
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            given = [t for i in range(layer.num_inputs) if (t := layer.get_input(i)) is not None]
            made = [layer.get_output(i) for i in range(layer.num_outputs)]
            if all(tensor.name in folded for tensor in given):
                folded |= {tensor.name for tensor in made}
            for node in _ORIGIN.findall(layer.metadata):
                self._constants[node] |= {_type(t) for t in given if t.name in folded}
                self._outputs[node] |= {_type(t) for t in made}
                self._sources[node] |= {makers[t.name] for t in given if t.name in makers} - {node}
                makers |= {t.name: node for t in made}

    def outputs_of(self, nodes: Iterable[str]) -> set[str]:
        return set().union(*(self._outputs[node] for node in nodes))

    def constants_into(self, nodes: Iterable[str], described: set[str]) -> set[str]:
        """Of these nodes and of those before them that no layer of the engine computes any more:
        what they would have computed is a constant now."""
        constants, waiting, seen = set[str](), list(nodes), set[str]()
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                constants |= self._constants[node]
                waiting += self._sources[node] - described
        return constants


def _type(tensor: Any) -> str:
    return str(tensor.dtype).rpartition(".")[2]


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name, _shape(shape), _TYPES.get(dtype, dtype))
        for name, shape, dtype in _TENSOR.findall(text)
    )


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)
