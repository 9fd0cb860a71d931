"""Runs a recorded network on torch tensors, layer by layer, from the definitions of the operators.

In fp32 on a CPU. What a plugin does is not here: it is a function (layer, inputs) -> outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from dycoke_trt.tests.engines.network.recording import RecordedLayer, Recording
from torch import Tensor

Plugin = Callable[[RecordedLayer, list[Tensor]], list[Tensor]]
DTYPES = {
    "FLOAT": torch.float32, "INT32": torch.int32, "INT64": torch.int64, "BOOL": torch.bool
}  # fmt: skip


def evaluate(
    networks: Sequence[Recording],
    inputs: Sequence[Mapping[str, Tensor]],
    plugins: Sequence[Mapping[str, Plugin]],
) -> dict[str, Tensor]:
    """Outputs of the first rank, by name. One network, inputs and plugins per rank.

    Ranks run in turn from one collective to the next. Raises KeyError for an input that is missing
    or a plugin that is not known, AssertionError for a tensor of another type than recorded.
    """
    ranks = [_run(*one) for one in zip(networks, inputs, plugins, strict=True)]
    together: Tensor | None = None
    while True:
        try:
            waiting = [rank.send(together) for rank in ranks]  # None starts a generator
        except StopIteration as done:  # ranks have as many collectives, so all are done
            outputs: dict[str, Tensor] = done.value
            return outputs
        names = {layer.plugin for layer, _ in waiting}
        assert len(names) == 1, f"ranks meet in different collectives: {names}"
        together = _COLLECTIVES[names.pop()]([tensor for _, tensor in waiting])


def _run(
    network: Recording, inputs: Mapping[str, Tensor], plugins: Mapping[str, Plugin]
) -> Generator[tuple[RecordedLayer, Tensor], Tensor | None, dict[str, Tensor]]:
    """One rank; yields what it brings to a collective and is sent what comes out of it."""
    known: dict[int, Tensor] = {}

    def keep(number: int, value: Tensor) -> None:
        expected = DTYPES[network.dtypes[number]]
        assert value.dtype == expected, (number, value.dtype, expected)
        known[number] = value

    unused = set(inputs) - set(network.inputs)
    assert not unused, f"the network has no input {unused}"
    for name, number in network.inputs.items():
        keep(number, inputs[name])
    for layer in network.layers:
        given = [None if number is None else known[number] for number in layer.inputs]
        present = [tensor for tensor in given if tensor is not None]
        if layer.plugin in _COLLECTIVES:
            summed = yield layer, present[0]
            assert summed is not None
            outputs = [summed]
        elif layer.plugin is not None:
            outputs = plugins[layer.plugin](layer, present)
        else:
            outputs = [_OPERATORS[layer.kind](layer.values, *given)]
        for number, value in zip(layer.outputs, outputs, strict=True):
            keep(number, value)
    return {name: known[number] for name, number in network.outputs.items()}


_COLLECTIVES: dict[str | None, Callable[[list[Tensor]], Tensor]] = {
    "AllReduce": lambda parts: torch.stack(parts).sum(0),
    "AllGather": torch.cat,
}


def gemm(layer: RecordedLayer, inputs: list[Tensor]) -> list[Tensor]:
    """TensorRT-LLM's plugin over cuBLASLt: alpha * op(a) @ op(b)."""
    transposed = [bool(layer.values[name].item()) for name in ("transa", "transb")]
    a, b = (x.mT if turn else x for x, turn in zip(inputs, transposed, strict=True))
    return [a @ b * float(layer.values.get("alpha", torch.tensor(1.0)).item())]


def _constant(values: dict[str, Any]) -> Tensor:
    return torch.from_numpy(values["weights"].copy()).reshape(values["dims"])


def _shuffle(values: dict[str, Any], x: Tensor, sizes: Tensor | None = None) -> Tensor:
    if "first_transpose" in values:
        x = x.permute(tuple(values["first_transpose"]))
    target = sizes.tolist() if sizes is not None else list(values.get("reshape_dims") or x.shape)
    if values["zero_is_placeholder"]:
        target = [x.shape[i] if size == 0 else size for i, size in enumerate(target)]
    x = x.reshape(target)
    if "second_transpose" in values:
        x = x.permute(tuple(values["second_transpose"]))
    return x


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


_ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": torch.add, "SUB": torch.sub, "PROD": torch.mul, "DIV": _divide, "POW": torch.pow,
    "FLOOR_DIV": partial(torch.div, rounding_mode="floor"), "MAX": torch.maximum,
    "MIN": torch.minimum, "LESS": torch.lt, "GREATER": torch.gt, "EQUAL": torch.eq,
    "AND": torch.logical_and, "OR": torch.logical_or,
}  # fmt: skip
_UNARY = {"SQRT": torch.sqrt, "EXP": torch.exp, "LOG": torch.log, "ABS": torch.abs}
_ACTIVATIONS = {"SIGMOID": torch.sigmoid, "RELU": torch.relu, "TANH": torch.tanh}


def _reduce(values: dict[str, Any], x: Tensor) -> Tensor:
    axes = [axis for axis in range(x.ndim) if values["axes"] >> axis & 1]
    reduction = {"AVG": torch.mean, "SUM": torch.sum}[values["op"]]
    return reduction(x, dim=axes, keepdim=values["keep_dims"])


def _matmul(values: dict[str, Any], a: Tensor, b: Tensor) -> Tensor:
    turned = [x.mT if values[op] == "TRANSPOSE" else x for x, op in ((a, "op0"), (b, "op1"))]
    return turned[0] @ turned[1]


def _slice(
    values: dict[str, Any], x: Tensor, start: Tensor | None = None, sizes: Tensor | None = None,
    stride: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Element i of an axis is start + i * stride of the input; a stride of 0 repeats it."""
    starts, counts, strides = (
        list(values[name]) if given is None else given.tolist()
        for name, given in (("start", start), ("sizes", sizes), ("stride", stride))
    )
    for axis, (first, count, step) in enumerate(zip(starts, counts, strides, strict=True)):
        x = x.index_select(axis, first + step * torch.arange(count))
    return x


def _gather(values: dict[str, Any], x: Tensor, indices: Tensor) -> Tensor:
    axis = values["axis"]
    picked = x.index_select(axis, indices.flatten().long())
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "constant": _constant,
    "shuffle": _shuffle,
    "elementwise": lambda values, a, b: _ELEMENTWISE[values["op"]](a, b),
    "unary": lambda values, x: _UNARY[values["op"]](x),
    "activation": lambda values, x: _ACTIVATIONS[values["activation"]](x),
    "identity": lambda _, x: x,
    "reduce": _reduce,
    "matrix_multiply": _matmul,
    "concatenation": lambda values, *inputs: torch.cat(inputs, dim=values["axis"]),
    "slice": _slice,
    "gather": _gather,
    "gather_v2": lambda values, x, indices: torch.gather(x, values["axis"], indices.long()),
    "shape": lambda _, x: torch.tensor(x.shape),
    "cast": lambda values, x: x.to(DTYPES[values["to"]]),
    "select": lambda _, condition, then, other: torch.where(condition, then, other),
}
