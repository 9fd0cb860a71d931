"""The recorder: networks, layers and tensors of the stand-in for `tensorrt` (fake_tensorrt.py).

Layers are kept as they were added; types are checked as a strongly typed network does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dycoke_trt.tests.engines.network.fake_types import (
    DataType,
    Dims,
    LayerType,
    NetworkDefinitionCreationFlag,
    Open,
    PluginFieldCollection,
    TensorLocation,
    TensorRTPhase,
    Weights,
)
from dycoke_trt.tests.engines.network.recording import RecordedLayer, Recording
from dycoke_trt.tests.engines.network.shapes import Known, infer


class ITensor:
    def __init__(self, network: INetworkDefinition, layer: ILayer | None, number: int) -> None:
        self.network, self.layer, self.number = network, layer, number
        self.name = f"tensor_{number}"
        self.given: Known | None = None  # of a network's input
        self.location: Any = TensorLocation.DEVICE
        self.is_shape_tensor = False

    @property
    def known(self) -> Known:
        if self.layer is None:
            assert self.given is not None
            return self.given
        return self.layer.known[self.layer.outputs.index(self)]

    @property
    def dtype(self) -> DataType:
        return DataType[self.known.dtype]

    @dtype.setter
    def dtype(self, value: DataType) -> None:
        assert value == self.dtype, "a strongly typed network does not set types"

    @property
    def shape(self) -> Dims:
        return Dims(self.known.shape)

    @shape.setter
    def shape(self, value: Iterable[int]) -> None:
        assert tuple(value) == self.shape

    def set_dimension_name(self, axis: int, name: str) -> None:
        assert axis < len(self.shape), name


class ILayer:
    """values: what the layer was made with. Attributes that are set later are values too."""

    _own = ("network", "type", "name", "metadata", "precision", "inputs", "outputs", "plugin")

    def __init__(
        self, network: INetworkDefinition, kind: str, inputs: Iterable[Any], **values: Any
    ) -> None:
        self.__dict__.update(network=network, kind=kind, values=values, _known=None)
        self.type = getattr(
            LayerType, "GATHER" if kind == "gather_v2" else kind.partition(":")[0].upper()
        )
        self.name = f"(Unnamed Layer* {len(network.layers)}) [{kind}]"
        self.inputs: list[ITensor | None] = list(inputs)
        self.outputs: list[ITensor] = []
        network.layers.append(self)
        self.outputs = [network.tensor(self) for _ in self.known]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":  # files cast a layer to its kind; here all are one
            return
        if name in self._own:
            self.__dict__[name] = value
        else:
            self.values[name] = value
        self.__dict__["_known"] = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self.__dict__.get("values", {}):
            raise AttributeError(name)
        return self.values[name]

    @property
    def known(self) -> list[Known]:
        """Of the outputs, inferred again after anything was set."""
        if self._known is None:
            given = [None if t is None else t.known for t in self.inputs]
            self.__dict__["_known"] = infer(self.kind, given, self.values)
        found: list[Known] = self.__dict__["_known"]
        return found

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> ITensor | None:
        return self.inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self.outputs[index]

    def set_input(self, index: int, tensor: ITensor) -> None:
        self.inputs += [None] * (index + 1 - len(self.inputs))
        self.inputs[index] = tensor
        self.__dict__["_known"] = None


class INetworkDefinition:
    """The recorder: add_<kind> of any kind whose output shapes.py can tell."""

    def __init__(self, builder: Any) -> None:
        self.builder, self.name = builder, "recorded"
        self.layers: list[ILayer] = []
        self.network_inputs: list[ITensor] = []
        self.network_outputs: list[ITensor] = []
        self._tensors = 0

    @staticmethod
    def get_flag(_: INetworkDefinition, flag: NetworkDefinitionCreationFlag) -> Any:
        return flag is NetworkDefinitionCreationFlag.STRONGLY_TYPED

    def tensor(self, layer: ILayer | None) -> ITensor:
        self._tensors += 1
        return ITensor(self, layer, self._tensors - 1)

    def add_input(self, name: str, dtype: DataType, shape: Iterable[int]) -> ITensor:
        made = self.tensor(None)
        made.name, made.given = name, Known(dtype.name, tuple(shape))
        self.network_inputs.append(made)
        return made

    def mark_output(self, tensor: ITensor) -> None:
        self.network_outputs.append(tensor)

    def mark_weights_refittable(self, _: str) -> None:
        pass

    def set_weights_name(self, _: Weights, __: str) -> Any:
        return True

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_inputs(self) -> int:
        return len(self.network_inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.network_outputs)

    def get_layer(self, index: int) -> ILayer:
        return self.layers[index]

    def get_input(self, index: int) -> ITensor:
        return self.network_inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self.network_outputs[index]

    def add_constant(self, shape: Dims, weights: Weights) -> ILayer:
        return ILayer(self, "constant", [], dims=tuple(shape), weights=weights)

    def add_shuffle(self, x: ITensor) -> ILayer:
        return ILayer(self, "shuffle", [x], zero_is_placeholder=True)

    def add_elementwise(self, a: ITensor, b: ITensor, op: Any) -> ILayer:
        return ILayer(self, "elementwise", [a, b], op=op)

    def add_unary(self, x: ITensor, op: Any) -> ILayer:
        return ILayer(self, "unary", [x], op=op)

    def add_activation(self, x: ITensor, type: Any) -> ILayer:  # noqa: A002
        return ILayer(self, "activation", [x], activation=type)

    def add_reduce(self, x: ITensor, op: Any, axes: int, keep_dims: Any) -> ILayer:
        return ILayer(self, "reduce", [x], op=op, axes=axes, keep_dims=keep_dims)

    def add_matrix_multiply(self, a: ITensor, op0: Any, b: ITensor, op1: Any) -> ILayer:
        return ILayer(self, "matrix_multiply", [a, b], op0=op0, op1=op1)

    def add_concatenation(self, inputs: list[ITensor]) -> ILayer:
        return ILayer(self, "concatenation", inputs, axis=0)

    def add_slice(self, x: ITensor, start: Any, shape: Any, stride: Any) -> ILayer:
        values = {"start": tuple(start), "sizes": tuple(shape), "stride": tuple(stride)}
        return ILayer(self, "slice", [x], **values)

    def add_gather(self, x: ITensor, indices: ITensor, axis: int) -> ILayer:
        return ILayer(self, "gather", [x, indices], axis=axis)

    def add_gather_v2(self, x: ITensor, indices: ITensor, mode: Any) -> ILayer:
        return ILayer(self, "gather_v2", [x, indices], mode=mode, axis=0)

    def add_shape(self, x: ITensor) -> ILayer:
        return ILayer(self, "shape", [x])

    def add_cast(self, x: ITensor, dtype: DataType) -> ILayer:
        return ILayer(self, "cast", [x], to=dtype.name)

    def add_identity(self, x: ITensor) -> ILayer:
        return ILayer(self, "identity", [x])

    def add_select(self, condition: ITensor, then: ITensor, other: ITensor) -> ILayer:
        return ILayer(self, "select", [condition, then, other])

    def add_plugin_v2(self, inputs: list[ITensor], plugin: _Plugin) -> ILayer:
        layer = ILayer(self, f"plugin_v2:{plugin.plugin_type}", inputs, **plugin.fields)
        layer.plugin = plugin
        return layer

    def add_plugin_v3(self, inputs: list[ITensor], shapes: list[ITensor], plugin: Any) -> ILayer:
        assert shapes == []
        layer = ILayer(self, f"plugin_v3:{plugin.plugin_type}", inputs, **plugin.fields)
        layer.plugin = plugin
        return layer

    def record(self) -> Recording:
        from tensorrt_llm.version import __version__ as release

        tensors = [*self.network_inputs, *(t for layer in self.layers for t in layer.outputs)]
        return Recording(
            release,
            {t.name: t.number for t in self.network_inputs},
            {t.name: t.number for t in self.network_outputs},
            {t.number: t.known.dtype for t in tensors},
            [
                RecordedLayer(
                    layer.kind,
                    layer.name,
                    [None if t is None else t.number for t in layer.inputs],
                    [t.number for t in layer.outputs],
                    {key: _plain(value) for key, value in layer.values.items()},
                )
                for layer in self.layers
            ],
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Weights):
        return value.array()
    return value.name if isinstance(value, Open) else value


class _Plugin:
    plugin_version = "1"
    num_outputs = 1

    def __init__(self, name: str, namespace: str, fields: PluginFieldCollection) -> None:
        self.plugin_type, self.plugin_namespace = name, namespace
        self.fields = {field.name: field.data for field in fields}


class _Creator:
    """Of a plugin of the older or the newer interface."""

    def __init__(self, name: str, namespace: str) -> None:
        self.name, self.plugin_namespace = name, namespace

    def create_plugin(
        self, _: str, fields: PluginFieldCollection, phase: Any = None
    ) -> _Plugin | None:
        assert phase is None or phase is TensorRTPhase.BUILD
        return _Plugin(self.name, self.plugin_namespace, fields)


class _Registry:
    def get_plugin_creator(self, name: str, version: str, namespace: str) -> _Creator:
        assert (version, namespace) in (("1", "tensorrt_llm"), ("1-v2", "dycoke")), name
        return _Creator(name, namespace)

    def get_creator(self, name: str, version: str, namespace: str) -> _Creator | None:
        return _Creator(name, namespace) if (version, namespace) == ("1", "dycoke") else None


def get_plugin_registry() -> _Registry:
    return _Registry()
