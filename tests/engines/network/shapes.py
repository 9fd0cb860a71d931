"""Types and shapes of a layer's outputs, as far as they are known while a network is defined.

-1 is a size that a request decides. Small integer tensors carry their values too (None: unknown),
which is how TensorRT knows that what was reshaped by computed sizes has 128 columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_COMPARISONS = ("LESS", "GREATER", "EQUAL")
_INTEGERS = ("INT32", "INT64")
_MOST_VALUES = 16


@dataclass(frozen=True)
class Known:
    """Of one tensor; values: flat, of an integer tensor of known size."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[int | None, ...] | None = None

    def sizes(self) -> tuple[int, ...]:
        """What a tensor of sizes says; -1 for what it does not know."""
        if self.values is None:
            assert len(self.shape) == 1
            return (-1,) * self.shape[0]
        return tuple(-1 if value is None else value for value in self.values)


def infer(kind: str, inputs: list[Known | None], values: dict[str, Any]) -> list[Known]:
    """Raises for a kind that no rule is there for, and where a strongly typed network would."""
    if kind.startswith("plugin_"):
        return _plugin(kind.partition(":")[2], inputs, values)
    if kind not in _RULES:
        raise NotImplementedError(f"the stand-in for tensorrt has no rule for a layer {kind}")
    return [_RULES[kind](inputs, values)]


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    assert len(a) == len(b), (a, b)
    for x, y in zip(a, b, strict=True):
        assert x == y or 1 in (x, y) or -1 in (x, y), (a, b)
    return tuple(y if x == 1 else x if y == 1 else max(x, y) for x, y in zip(a, b, strict=True))


def _constant(_: list[Any], values: dict[str, Any]) -> Known:
    dtype, shape = values["weights"].dtype.name, tuple(values["dims"])
    if dtype in _INTEGERS and math.prod(shape) <= _MOST_VALUES:
        return Known(dtype, shape, tuple(int(v) for v in values["weights"].array()))
    return Known(dtype, shape)


def _shuffle(inputs: list[Any], values: dict[str, Any]) -> Known:
    x = inputs[0]
    target = tuple(values.get("reshape_dims") or x.shape)
    if len(inputs) > 1:
        target = inputs[1].sizes()
    shape = list(x.shape)
    if "first_transpose" in values:
        shape = [shape[axis] for axis in values["first_transpose"]]
    if target != x.shape:
        if values["zero_is_placeholder"]:
            target = tuple(shape[i] if size == 0 else size for i, size in enumerate(target))
        if target.count(-1) == 1 and -1 not in shape:
            rest = -math.prod(target)
            target = tuple(math.prod(shape) // rest if s == -1 else s for s in target)
        shape = list(target)
    if "second_transpose" in values:
        shape = [shape[axis] for axis in values["second_transpose"]]
    return Known(x.dtype, tuple(shape), None if -1 in shape else x.values)


def _elementwise(inputs: list[Any], values: dict[str, Any]) -> Known:
    a, b, op = *inputs, values["op"].name
    assert a.dtype == b.dtype, f"{op} of {a.dtype} and {b.dtype}"
    shape = broadcast(a.shape, b.shape)
    dtype = "BOOL" if op in _COMPARISONS else a.dtype
    if a.values is None or b.values is None or dtype == "BOOL":
        return Known(dtype, shape)
    count = max(len(a.values), len(b.values))
    pairs = zip(_spread(a.values, count), _spread(b.values, count), strict=True)
    rules: dict[str, Callable[[int, int], int]] = {
        "SUM": lambda x, y: x + y, "SUB": lambda x, y: x - y, "PROD": lambda x, y: x * y,
        "DIV": lambda x, y: int(x / y), "FLOOR_DIV": lambda x, y: x // y,
        "MAX": max, "MIN": min,
    }  # fmt: skip
    found = tuple(None if x is None or y is None else rules[op](x, y) for x, y in pairs)
    return Known(dtype, shape, found)


def _spread(values: tuple[int | None, ...], count: int) -> tuple[int | None, ...]:
    return values * count if len(values) == 1 else values


def _same(inputs: list[Any], _: dict[str, Any]) -> Known:
    return Known(inputs[0].dtype, inputs[0].shape)


def _reduce(inputs: list[Any], values: dict[str, Any]) -> Known:
    reduced = [axis for axis in range(len(inputs[0].shape)) if values["axes"] >> axis & 1]
    shape = [1 if axis in reduced else size for axis, size in enumerate(inputs[0].shape)]
    if not values["keep_dims"]:
        shape = [size for axis, size in enumerate(shape) if axis not in reduced]
    return Known(inputs[0].dtype, tuple(shape))


def _matmul(inputs: list[Any], values: dict[str, Any]) -> Known:
    a, b = inputs
    assert a.dtype == b.dtype, f"matrix product of {a.dtype} and {b.dtype}"
    left, right = (
        (*x.shape[:-2], x.shape[-1], x.shape[-2]) if op.name == "TRANSPOSE" else x.shape
        for x, op in ((a, values["op0"]), (b, values["op1"]))
    )
    assert left[-1] == right[-2] or -1 in (left[-1], right[-2]), (left, right)
    return Known(a.dtype, (*broadcast(left[:-2], right[:-2]), left[-2], right[-1]))


def _concatenation(inputs: list[Any], values: dict[str, Any]) -> Known:
    axis = values["axis"]
    assert len({x.dtype for x in inputs}) == 1
    shape = list(inputs[0].shape)
    sizes = [x.shape[axis] for x in inputs]
    shape[axis] = -1 if -1 in sizes else sum(sizes)
    known = None
    if len(shape) == 1 and all(x.values is not None for x in inputs):
        known = tuple(value for x in inputs for value in x.values)
    elif len(shape) == 1 and -1 not in sizes and inputs[0].dtype in _INTEGERS:
        known = tuple(v for x in inputs for v in (x.values or (None,) * x.shape[0]))
    return Known(inputs[0].dtype, tuple(shape), known)


def _slice(inputs: list[Any], values: dict[str, Any]) -> Known:
    x = inputs[0]
    given = [*inputs[1:], None, None, None]
    start = given[0].sizes() if given[0] is not None else values["start"]
    sizes = given[1].sizes() if given[1] is not None else values["sizes"]
    known = None
    if x.values is not None and len(sizes) == 1 and given[0] is None and sizes[0] != -1:
        known = x.values[start[0] :: values["stride"][0]][: sizes[0]]
    return Known(x.dtype, tuple(sizes), known)


def _gather(inputs: list[Any], values: dict[str, Any]) -> Known:
    x, indices = inputs
    assert indices.dtype in _INTEGERS
    axis = values["axis"]
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    known = None
    if x.values is not None and indices.values is not None and None not in indices.values:
        known = tuple(x.values[i] for i in indices.values)
    return Known(x.dtype, shape, known)


def _gather_elements(inputs: list[Any], values: dict[str, Any]) -> Known:
    x, indices = inputs
    assert values["mode"].name == "ELEMENT"
    assert len(x.shape) == len(indices.shape)
    if x.values is None or indices.values is None or len(x.shape) != 1:
        return Known(x.dtype, indices.shape)
    return Known(x.dtype, indices.shape, tuple(x.values[i] for i in indices.values))


def _shape(inputs: list[Any], _: dict[str, Any]) -> Known:
    sizes = inputs[0].shape
    return Known("INT64", (len(sizes),), tuple(None if s == -1 else s for s in sizes))


def _cast(inputs: list[Any], values: dict[str, Any]) -> Known:
    kept = inputs[0].values if values["to"] in _INTEGERS else None
    return Known(values["to"], inputs[0].shape, kept)


def _select(inputs: list[Any], _: dict[str, Any]) -> Known:
    condition, then, other = inputs
    assert condition.dtype == "BOOL"
    assert then.dtype == other.dtype
    return Known(then.dtype, broadcast(condition.shape, broadcast(then.shape, other.shape)))


_RULES = {
    "constant": _constant, "shuffle": _shuffle, "elementwise": _elementwise, "unary": _same,
    "activation": _same, "identity": _same, "reduce": _reduce, "matrix_multiply": _matmul,
    "concatenation": _concatenation, "slice": _slice, "gather": _gather,
    "gather_v2": _gather_elements, "shape": _shape, "cast": _cast, "select": _select,
}  # fmt: skip


def _plugin(name: str, inputs: list[Known | None], fields: dict[str, Any]) -> list[Known]:
    """Of TensorRT-LLM's plugins: gptAttentionPlugin, gemmPlugin, allreducePlugin; and of ours."""
    found = [x for x in inputs if x is not None]
    assert len(found) == len(inputs)
    first = found[0]
    if name == "GPTAttention":
        heads, size = int(fields["num_heads"]), int(fields["head_size"])
        return [Known(first.dtype, (*first.shape[:-1], heads * size))]
    if name == "Gemm":
        rows = first.shape[-1:] if np.any(fields["transa"]) else first.shape[:-1]
        return [Known(first.dtype, (*rows, found[1].shape[0 if np.any(fields["transb"]) else 1]))]
    if name in ("AllReduce", "DycokeRope"):
        return [Known(first.dtype, first.shape)]
    if name == "AllGather":
        count = -1 if first.shape[0] == -1 else first.shape[0] * fields["group"].size
        return [Known(first.dtype, (count, *first.shape[1:]))]
    if name == "DycokeScore":
        sequences = found[2].shape[0]
        if int(fields["ranks"].item()) > 1:
            return [Known("FLOAT", (sequences, -1))]
        return [Known("FLOAT", (sequences, -1, -1))] * 3
    if name == "DycokeSelect":
        return [Known("INT32", found[3].shape), Known("INT32", found[1].shape)]
    raise NotImplementedError(f"the stand-in for tensorrt does not know the plugin {name}")
