"""The plugins by TensorRT's two interfaces: calls of its Python API, on a recorder of networks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines import plugin_interfaces, try_plugin
from dycoke_trt.engines.plugin_interfaces import VERSIONS, create_plugin
from dycoke_trt.engines.plugin_nodes import ROPE_INPUTS
from dycoke_trt.runtime import tensorrt_library
from dycoke_trt.tests.engines.network import fake_tensorrt
from dycoke_trt.tests.support import assert_one_line, dycoke

SOURCES = Path(plugin_interfaces.__file__).parent / "plugin"
SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": "float16", "ranks": 1}


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """A manifest with one rotary image that holds nothing."""
    image = {
        "name": "rotary", "file": "rotary.ptx", "target": "ptx", "entry": "rotary_kernel",
        "grid": ["tokens", "1", "1"], "warps": 1, "shared_bytes": 0, "hidden_parameters": 2,
        "parameters": [{"name": "qkv", "bytes": 8, "aligned": True}], "constants": {"D": 16},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps({"shape": SHAPE, "images": [image]}))
    (tmp_path / "rotary.ptx").write_bytes(b".version 8.0")
    return tmp_path


@pytest.mark.parametrize("interface", ["v3", "v2"])
def test_a_network_of_one_plugin(kernels: Path, interface: str) -> None:
    """Types and shapes are checked by the recorder, as a strongly typed network does."""
    builder = fake_tensorrt.Builder(None)
    network = builder.create_network(1 << int(fake_tensorrt.NetworkDefinitionCreationFlag(1)))
    try_plugin.define(fake_tensorrt, network, interface, kernels)
    (layer,) = network.layers
    assert layer.kind == f"plugin_{interface}:DycokeRope"
    assert [tensor.name for tensor in network.network_inputs] == list(ROPE_INPUTS)
    assert [tensor.dtype.name for tensor in network.network_inputs] == [
        "HALF", "FLOAT", "INT32", "INT32", "INT32"
    ]  # fmt: skip
    (output,) = network.network_outputs
    assert (output.name, output.dtype.name, tuple(output.shape)) == ("out", "HALF", (-1, 128))
    assert np.array(layer.values["images"]).tobytes().endswith(b".version 8.0")


def test_versions_are_those_of_the_library() -> None:
    for interface, version in VERSIONS.items():
        text = (SOURCES / f"plugin_{interface}.h").read_text()
        assert re.search(r'kVersionV\d = "(.*)"', text)[1] == version  # type: ignore[index]


def test_plugins_that_are_not_there() -> None:
    registry = SimpleNamespace(get_creator=lambda *_: None, get_plugin_creator=lambda *_: None)
    trt = SimpleNamespace(get_plugin_registry=lambda: registry)
    for interface, version in VERSIONS.items():
        with pytest.raises(DyCokeError, match=f"DycokeRope version {version} is not registered"):
            create_plugin(trt, interface, "DycokeRope", {})


def test_what_is_expected_is_what_transformers_rotates() -> None:
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    shape = SHAPE | {"dtype": "float32"}
    given = try_plugin.example(shape)
    got = try_plugin.expected(given, shape).unflatten(1, (-1, 16))
    heads = given["qkv"].unflatten(1, (-1, 16))
    positions = torch.tensor([0, 1, 2, 3, 4, 8, 11])
    steps = 10_000.0 ** (-torch.arange(8) / 8)
    angles = torch.cat([positions[:, None] * steps] * 2, -1)[None]
    q, k = (heads[None, :, part].transpose(1, 2) for part in (slice(0, 4), slice(4, 6)))
    query, key = apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())
    assert torch.allclose(got[:, :4], query[0].transpose(0, 1), atol=1e-5)
    assert torch.allclose(got[:, 4:6], key[0].transpose(0, 1), atol=1e-5)
    assert torch.equal(got[:, 6:], heads[:, 6:])


def test_trials_are_read_from_their_processes(
    kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without tensorrt both processes end with Python's own last line."""
    assert_one_line(dycoke("doctor", "--try-plugin", tmp_path), "tensorrt is not installed")
    assert_one_line(dycoke("doctor", "--plugin", "x.so"), "--plugin x.so has no effect without")
    monkeypatch.setattr(tensorrt_library, "version_of", lambda *_: "10.14.1")
    monkeypatch.setattr(try_plugin, "plugin_library", lambda _: Path("x.so"))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "kernels").symlink_to(kernels)
    trials = try_plugin.try_plugin(bundle)
    assert [(trial.interface, trial.works) for trial in trials] == [("v3", False), ("v2", False)]
    assert all("No module named 'tensorrt'" in trial.reason for trial in trials)
    assert "neither interface" in try_plugin.advice(trials)
    good = [try_plugin.Trial("v3", False, "x"), try_plugin.Trial("v2", True)]
    assert try_plugin.advice(good) == "dycoke build BUNDLE --plugin-interface v2"
