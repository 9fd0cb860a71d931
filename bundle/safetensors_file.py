"""The safetensors container, read and written piece by piece.

The container is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte
range) and the bytes. Reading here goes through ordinary file reads of single tensors or rows, and
writing streams them, so memory is bounded by one piece whatever the size of the model.

Not by `safetensors.safe_open`: it gives no byte ranges, which graphs refer to, and no raw header,
which a revision is made of; it refuses a file for one dtype that it does not know, where only the
tensor is of no use; and it maps the file, which then counts as resident (a 0.5B in bf16 loaded as
fp32: 3.8 GB against 2.9) and ends a server with SIGBUS if it is cut short while that runs. The
usual writer wants all tensors at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DyCokeError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100 << 20  # the format's own limit, bytes
CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype by the format's name, and its byte range in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A safetensors file whose header has been read and checked; tensors are read on demand.

    entries: name -> Entry. header: the raw header bytes.
    Raises DyCokeError for a missing, truncated or malformed file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if self.size < 8 or length > min(self.size - 8, _MAX_HEADER):
                    raise self._refusal(
                        f"header of {length} bytes in a file of {self.size}: truncated, or not "
                        "safetensors; copy the file again"
                    )
                self.header = file.read(length)
        except OSError as error:
            raise DyCokeError(f"{path}: cannot be read ({error.strerror})") from None
        self.entries = self._parse(8 + length)

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, in its own dtype, in fresh memory."""
        entry = self.entries[name]
        return self._read(entry, entry.start, entry.shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop-1 along the first axis of a tensor of at least one dimension."""
        entry = self.entries[name]
        row_bytes = (entry.stop - entry.start) // max(entry.shape[0], 1)
        return self._read(entry, entry.start + start * row_bytes, (stop - start, *entry.shape[1:]))

    def chunks(
        self, name: str, start: int, stop: int, limit: int = CHUNK_BYTES
    ) -> Iterator[Tensor]:
        """Rows start..stop-1 in pieces of at most `limit` bytes (at least one row each)."""
        entry = self.entries[name]
        row_bytes = max((entry.stop - entry.start) // max(entry.shape[0], 1), 1)
        step = max(limit // row_bytes, 1)
        for row in range(start, stop, step):
            yield self.rows(name, row, min(row + step, stop))

    def sample(self, pieces: int = 16, size: int = 4096) -> bytes:
        """`pieces` short stretches spread over the file: tells fine-tunes of one shape apart."""
        with self.path.open("rb") as file:
            stretches = []
            for i in range(pieces):
                file.seek(max(self.size - size, 0) * i // max(pieces - 1, 1))
                stretches.append(file.read(size))
        return b"".join(stretches)

    def _read(self, entry: Entry, offset: int, shape: tuple[int, ...]) -> Tensor:
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise self._refusal(
                f"dtype {entry.dtype} cannot be read; readable: {', '.join(DTYPES)}"
            )
        tensor = torch.empty(shape, dtype=dtype)
        left = raw_bytes(tensor)
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            while left:
                count = file.readinto(left)
                if not count:
                    raise self._refusal("ends before its data does; it changed while it was read")
                left = left[count:]
        return tensor

    def _parse(self, base: int) -> dict[str, Entry]:
        try:
            header = json.loads(self.header)
            header.pop("__metadata__", None)
            entries = {
                name: Entry(
                    str(value["dtype"]),
                    tuple(int(n) for n in value["shape"]),
                    base + int(value["data_offsets"][0]),
                    base + int(value["data_offsets"][1]),
                )
                for name, value in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise self._refusal("its header is not safetensors JSON; copy the file again") from None
        end = max((entry.stop for entry in entries.values()), default=base)
        if end != self.size:
            raise self._refusal(
                f"its header promises {end} bytes, the file has {self.size}: truncated or damaged; "
                "copy it again"
            )
        for name, entry in entries.items():
            dtype = DTYPES.get(entry.dtype)
            size = math.prod(entry.shape) * dtype.itemsize if dtype else entry.stop - entry.start
            if entry.start < base or entry.stop - entry.start != size:
                raise self._refusal(
                    f"tensor {name}: {entry.stop - entry.start} bytes for {entry.dtype} "
                    f"{list(entry.shape)}, which needs {size}; copy the file again"
                )
        return entries

    def _refusal(self, problem: str) -> DyCokeError:
        return DyCokeError(f"{self.path}: {problem}")


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that is still to be written: its header entry, and a source of its bytes.

    chunks: called once; yields tensors of `dtype` whose elements, in order, fill `shape`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: Callable[[], Iterator[Tensor]]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, plans: Sequence[TensorPlan]) -> str:
    """Streams `plans` into `path`; the file appears under its name only when it is complete.

    Returns its SHA-256, which a thread of its own computes from the bytes as they are written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in plans:
        header[plan.name] = {
            "dtype": _NAMES[plan.dtype],
            "shape": list(plan.shape),
            "data_offsets": [offset, offset + plan.bytes],
        }
        offset += plan.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file, ThreadPoolExecutor(1, "hash") as thread:
            begin = struct.pack("<Q", len(text)) + text
            digest = hashlib.sha256()
            hashing = thread.submit(digest.update, begin)
            file.write(begin)
            for plan in plans:
                written = 0
                for chunk in plan.chunks():
                    content = raw_bytes(chunk)
                    hashing.result()  # of the chunk before: at most two are in memory
                    hashing = thread.submit(digest.update, content)
                    written += file.write(content)
                if written != plan.bytes:
                    raise ValueError(f"{plan.name}: {written} bytes for {plan.bytes} planned")
        os.replace(partial, path)
        return digest.hexdigest()
    except OSError as error:
        raise DyCokeError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The little-endian bytes of a tensor, in row-major order; a view where possible."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
