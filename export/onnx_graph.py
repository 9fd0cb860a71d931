"""A small builder of ONNX graphs with full control of names, dtypes and where weights lie.

A value has the name of the node that makes it (`tower/layers.3/attention/scores`), so tools can
compare layer by layer. Weights are written as they come: to an external data file, or inline.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .safetensors_file import raw_bytes

OPSET = 20  # the first with Gelu; TensorRT 10.1 to 10.15 take opsets 9 to 20 and more
IR_VERSION = 9  # the one of opset 20
_INLINE_BYTES = 1024  # smaller constants stay inline: shape inference has to see them
_ALIGNMENT = 4096  # of external tensors, so that they can be mapped


class GraphBuilder:
    """Collects nodes and weights, then writes one model.

    data_path: file for the weights' bytes, or None to keep them in the model (protobuf's limit is
        2 GB). Use as a context manager: a failure inside removes the data file.
    """

    def __init__(self, name: str, data_path: Path | None = None) -> None:
        self.name = name
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._known: set[str] = set()
        self._data_path = data_path
        self._data = None if data_path is None else data_path.open("wb")

    def __enter__(self) -> GraphBuilder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._data is not None and self._data_path is not None:
            self._data.close()
            if kind is not None:
                self._data_path.unlink(missing_ok=True)

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output; returns its name."""
        from onnx import helper

        self._claim(name)
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def top_k(self, name: str, values: str, count: int) -> tuple[str, str]:
        """The `count` smallest along the last axis, ascending: (values, int64 indices)."""
        from onnx import helper

        self._claim(name)
        k = self.constant(f"{name}/count", torch.tensor([count]))
        outputs = [name, f"{name}/indices"]
        node = helper.make_node(
            "TopK", [values, k], outputs, name=name, axis=-1, largest=0, sorted=1
        )
        self._nodes.append(node)
        return name, f"{name}/indices"

    def cast(self, name: str, value: str, dtype: torch.dtype) -> str:
        return self.node("Cast", name, value, to=onnx_dtype(dtype))

    def reshape(self, name: str, value: str, shape: Sequence[int]) -> str:
        """0 copies an input dimension, one -1 is inferred."""
        sizes = torch.tensor(list(shape), dtype=torch.int64)
        return self.node("Reshape", name, value, self.constant(f"{name}/shape", sizes))

    def constant(self, name: str, value: Tensor) -> str:
        """An initializer with the dtype of `value`."""
        from onnx import TensorProto

        self._claim(name)
        tensor = TensorProto(name=name, data_type=onnx_dtype(value.dtype), dims=list(value.shape))
        content = raw_bytes(value)
        if self._data is None or content.nbytes < _INLINE_BYTES:
            tensor.raw_data = bytes(content)
        else:
            assert self._data_path is not None
            self._data.write(b"\0" * (-self._data.tell() % _ALIGNMENT))
            tensor.data_location = TensorProto.EXTERNAL
            for key, text in (
                ("location", self._data_path.name),
                ("offset", str(self._data.tell())),
                ("length", str(content.nbytes)),
            ):
                tensor.external_data.add(key=key, value=text)
            self._data.write(content)
        self._initializers.append(tensor)
        return name

    def save(
        self, path: Path, inputs: Sequence[Any], outputs: Sequence[Any], props: Mapping[str, str]
    ) -> None:
        """inputs, outputs: made by `value_info`. Closes the data file, then writes the model."""
        from onnx import helper

        if self._data is not None:
            self._data.close()
        graph = helper.make_graph(
            self._nodes, self.name, list(inputs), list(outputs), initializer=self._initializers
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="dycoke-trt",
        )
        helper.set_model_props(model, dict(props))
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(model.SerializeToString())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _claim(self, name: str) -> None:
        if name in self._known:
            raise ValueError(f"two values are called {name}")
        self._known.add(name)


def value_info(name: str, dtype: torch.dtype, shape: Sequence[int | str]) -> Any:
    """Type and shape of a graph input or output; strings name dynamic dimensions."""
    from onnx import helper

    return helper.make_tensor_value_info(name, onnx_dtype(dtype), list(shape))


def onnx_dtype(dtype: torch.dtype) -> int:
    """The TensorProto data type of a torch dtype."""
    from onnx import TensorProto

    names = {
        torch.float32: "FLOAT",
        torch.float16: "FLOAT16",
        torch.bfloat16: "BFLOAT16",
        torch.int32: "INT32",
        torch.int64: "INT64",
        torch.uint8: "UINT8",
    }
    return int(getattr(TensorProto, names[dtype]))
