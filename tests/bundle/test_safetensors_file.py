import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.bundle.safetensors_file import (
    DTYPES,
    SafetensorsFile,
    TensorPlan,
    write_safetensors,
)
from dycoke_trt.core.errors import DyCokeError
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)


def plan(name: str, tensor: torch.Tensor, pieces: int = 1) -> TensorPlan:
    return TensorPlan(name, tuple(tensor.shape), tensor.dtype, lambda: iter(tensor.chunk(pieces)))


@given(st.lists(st.tuples(SHAPES, st.sampled_from(list(DTYPES.values()))), max_size=4), st.data())
def test_round_trips_with_the_safetensors_library(
    tmp_path_factory: pytest.TempPathFactory, specs: list[Any], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    tensors = {
        f"t{i}": torch.arange(shape.numel()).view(shape).to(dtype)
        for i, (shape, dtype) in enumerate((torch.Size(s), d) for s, d in specs)
    }
    pieces = data.draw(st.integers(1, 3))
    write_safetensors(path, [plan(name, t, pieces) for name, t in tensors.items()])
    theirs = load_file(path)
    ours = SafetensorsFile(path)
    assert ours.entries.keys() == tensors.keys() == theirs.keys()
    for name, tensor in tensors.items():
        for found in (theirs[name], ours.tensor(name)):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)


@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 200), st.data())
def test_chunks_are_the_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: int, width: int, limit: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "x.safetensors"
    tensor = torch.randn(rows, width)
    save_file({"a": torch.ones(3), "t": tensor}, path)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    chunks = list(SafetensorsFile(path).chunks("t", start, stop, limit))
    assert all(c.nbytes <= max(limit, 4 * width) for c in chunks)
    assert torch.equal(torch.cat([*chunks, torch.empty(0, width)]), tensor[start:stop])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "truncated or damaged"),
        (lambda b: b + b"x", "truncated or damaged"),
        (lambda b: b[:40], "truncated, or not safetensors"),
        (lambda b: b[:3], "truncated, or not safetensors"),
        (lambda _: b"", "truncated, or not safetensors"),
        (lambda b: b.replace(b'"F32"', b'"F16"'), "which needs 6"),
        (lambda b: b.replace(b'"dtype"', b'"dtypo"'), "not safetensors JSON"),
        (lambda b: b.replace(b"{", b"[", 1), "not safetensors JSON"),
        (lambda _: b"PK\x03\x04" + b"\0" * 400, "truncated, or not safetensors|JSON"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"t": torch.ones(3)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DyCokeError, match=message) as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DyCokeError, match="No such file"):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_unreadable_dtypes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"t": torch.ones(3).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(DyCokeError, match=r"F8_E4M3 cannot be read"):
        SafetensorsFile(path).tensor("t")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> object:
        yield torch.ones(1)
        raise RuntimeError("no more")

    for chunks, error in ((broken, "no more"), (lambda: iter([torch.ones(1)]), "4 bytes for 12")):
        with pytest.raises((RuntimeError, ValueError), match=re.escape(error)):
            write_safetensors(
                tmp_path / "x.safetensors", [TensorPlan("t", (3,), torch.float32, chunks)]
            )
        assert list(tmp_path.iterdir()) == []


def test_the_header_is_aligned_and_ordered(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [plan("b", torch.ones(3)), plan("a", torch.ones(1))])
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert length % 8 == 0
    assert header["b"]["data_offsets"] == [0, 12]
    assert header["a"]["data_offsets"] == [12, 16]
