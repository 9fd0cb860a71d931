"""Reads weights and facts out of an ONNX file with nothing but torch: the container is protobuf.

Protobuf's wire format is a sequence of (field number, wire type, value); fields that are not asked
for are skipped. Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto,
TensorProto), which never change.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DyCokeError

_DTYPES = {
    1: torch.float32, 2: torch.uint8, 6: torch.int32, 7: torch.int64, 10: torch.float16,
    11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


@dataclass
class OnnxFile:
    """tensors: every initializer, mapped or in memory; properties: the model's metadata;
    attributes: node name -> its float and string attributes."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, dict[str, float | str]] = field(default_factory=dict)


def read_onnx(path: Path) -> OnnxFile:
    """Raises DyCokeError for a file that is no ONNX model or whose data file is missing."""
    out = OnnxFile()
    try:
        for number, value in _fields(memoryview(path.read_bytes())):
            if number == 7:  # graph
                for part, inner in _fields(value):
                    if part == 5:  # initializer
                        name, tensor = _tensor(inner, path.parent)
                        out.tensors[name] = tensor
                    elif part == 1:  # node
                        _node(inner, out)
            elif number == 14:  # metadata_props
                out.properties.update([_entry(value)])
    except (IndexError, KeyError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise DyCokeError(f"{path}: not a readable ONNX model ({error!r}); export again") from None
    except OSError as error:
        raise DyCokeError(f"{error.filename}: {error.strerror}; export again") from None
    return out


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value): int, 4 or 8 raw bytes, or the bytes of a nested message or string."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place + size > len(data):
            raise ValueError("truncated")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _text(data: memoryview) -> str:
    return bytes(data).decode()


def _entry(data: memoryview) -> tuple[str, str]:
    parts = {number: _text(value) for number, value in _fields(data)}
    return parts[1], parts.get(2, "")


def _tensor(data: memoryview, folder: Path) -> tuple[str, Tensor]:
    shape: list[int] = []
    name, dtype, raw = "", 0, memoryview(b"")
    external: dict[str, str] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            shape.append(value)
        elif number == 1:  # packed
            place = 0
            while place < len(value):
                size, place = _varint(value, place)
                shape.append(size)
        elif number == 2:
            dtype = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = value
        elif number == 13:
            external.update([_entry(value)])
    kind = _DTYPES[dtype]
    if external:
        with (folder / external["location"]).open("rb") as file:
            file.seek(int(external.get("offset", 0)))
            raw = memoryview(bytearray(file.read(int(external["length"]))))
    if not len(raw):
        return name, torch.empty(shape, dtype=kind)
    # A copy: the file's bytes are neither writable nor aligned.
    return name, torch.frombuffer(bytearray(raw), dtype=kind).view(shape)


def _node(data: memoryview, out: OnnxFile) -> None:
    name, attributes = "", {}
    for number, value in _fields(data):
        if number == 3:
            name = _text(value)
        elif number == 5:
            parts = dict(_fields(value))
            if 2 in parts:
                (attributes[_text(parts[1])],) = struct.unpack("<f", parts[2])
            elif 4 in parts:
                attributes[_text(parts[1])] = _text(parts[4])
    if attributes:
        out.attributes[name] = attributes
