"""Every vision graph that the exporter can make, through NVIDIA's own ONNX parser and compiler.

TensorRT for RTX compiles without a GPU. Nothing here runs an engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines.engine_layers import Tensor
from dycoke_trt.engines.rtx_compiler import compile_graph, parsed
from dycoke_trt.engines.vision_plan import profile_ranges
from dycoke_trt.export.checkpoint import Checkpoint
from dycoke_trt.export.vision import export_vision
from dycoke_trt.runtime.tensorrt_library import TENSORRT_RTX, LoadedLibrary
from onnx import TensorProto, helper

pytestmark = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None, reason="needs TensorRT for RTX"
)

SIDE, HIDDEN, SM = 101, 64, 89  # of tests/export/conftest.py; an Ada card
PAPER, OFF = DyCokeConfig(l=1), DyCokeConfig(l=1, ttm="off")
ONNX_TYPES = {
    TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.BFLOAT16: "BF16",
    TensorProto.INT32: "INT32", TensorProto.INT64: "INT64", TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}  # fmt: skip
Plant = Callable[[Any], None]


@pytest.fixture(scope="module")
def library() -> LoadedLibrary:
    return TENSORRT_RTX.load()


def verdict(library: LoadedLibrary, path: Path) -> bool:
    """What the parser alone says of the graph, without building it."""
    builder = library.trt.Builder(library.logger)
    network = builder.create_network(0)
    parser = library.trt.OnnxParser(network, library.logger)
    return bool(parser.supports_model_v2(path.read_bytes(), str(path)))


@pytest.mark.parametrize(
    ("dtype", "config", "options"),
    [
        (Dtype.FP32, PAPER, {}),
        (Dtype.FP16, PAPER, {}),
        (Dtype.BF16, PAPER, {}),
        (Dtype.FP32, OFF, {}),
        (Dtype.FP16, OFF, {}),
        (Dtype.BF16, OFF, {}),
        (Dtype.FP16, DyCokeConfig(l=1, k=0.97), {}),  # compared frames keep nothing
        (Dtype.FP32, PAPER, {"kept_rows": True}),
        (Dtype.BF16, PAPER, {"newline": "grid"}),  # LLaVA-Video
        (Dtype.FP16, OFF, {"newline": "frame"}),
    ],
)
def test_graph_is_parsed_and_built(
    checkpoint: Checkpoint,
    library: LoadedLibrary,
    tmp_path: Path,
    dtype: Dtype,
    config: DyCokeConfig,
    options: dict[str, Any],
) -> None:
    path, options = tmp_path / "vision_ttm.onnx", dict(options)
    if newline := options.pop("newline", None):
        spec = replace(checkpoint.config, newline=newline)
        checkpoint = Checkpoint(checkpoint.directory, spec, checkpoint._places, "")
    export_vision(checkpoint, path, config, dtype, **options)
    assert verdict(library, path)  # agrees with the build below
    assert_parsed_types_are_the_graphs(library, path)
    ranges = profile_ranges(SIDE, 12, max_batch=2)
    engine = compile_graph(library, path, [SM], ranges)
    expected = {
        "frames": ("Input", Tensor("frames", (-1, -1, 3, SIDE, SIDE), "UInt8")),
        "visual_embeds": ("Output", Tensor("visual_embeds", (-1, -1, HIDDEN), dtype.tensorrt)),
    }
    if options.get("kept_rows"):
        expected["kept_rows"] = ("Output", Tensor("kept_rows", (-1, -1), "Int64"))
    assert engine.io == expected
    assert engine.plan.nbytes > 100_000
    assert engine.activations > 0
    nodes = {node for layer in engine.layers for node in layer.nodes}
    assert {"tower/layers.0/Softmax", "projector/Gelu", "pooling/MatMul"} <= nodes
    # The islands of fp32 are there: similarities leave their kernel as such.
    if config.ttm == "paper" and config.k < 0.9:
        norms = [layer for layer in engine.layers if "compress/ReduceL2" in layer.nodes]
        assert "FLOAT" in {tensor.dtype for layer in norms for tensor in layer.outputs}


def assert_parsed_types_are_the_graphs(library: LoadedLibrary, path: Path) -> None:
    """The parser gives every named value the type that ONNX's own inference gives it."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    values = [*model.graph.value_info, *model.graph.output]
    wanted = {value.name: ONNX_TYPES[value.type.tensor_type.elem_type] for value in values}
    for constant in model.graph.initializer:
        wanted.pop(constant.name, None)
    compared = 0
    with parsed(library, path) as (_, network):
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            for output in (layer.get_output(i) for i in range(layer.num_outputs)):
                if output.name in wanted:
                    compared += 1
                    found = str(output.dtype).rpartition(".")[2]
                    assert found == wanted[output.name], output.name
    assert compared > 0.8 * len(wanted)


@pytest.fixture(scope="module")
def spoilt(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Plant], Path]:
    """A function plant -> the fp16 graph with something planted in it."""
    folder = tmp_path_factory.mktemp("spoilt")
    export_vision(checkpoint, folder / "whole.onnx", PAPER, Dtype.FP16)

    def make(plant: Plant) -> Path:
        model = onnx.load(folder / "whole.onnx")
        plant(model)
        onnx.save(model, folder / "spoilt.onnx")
        return folder / "spoilt.onnx"

    return make


def node_of(model: Any, name: str) -> Any:
    return next(node for node in model.graph.node if node.name == name)


def unknown_to_tensorrt(model: Any) -> None:
    """ONNX has it, TensorRT does not."""
    softmax = node_of(model, "tower/layers.1/Softmax")
    softmax.op_type = "Det"
    softmax.ClearField("attribute")


def unknown_to_all(model: Any) -> None:
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    gelu = node_of(model, "projector/Gelu")
    gelu.op_type, gelu.domain = "Sparkle", "nobody"


def two_types(model: Any) -> None:
    """A cast is left out, so a product has an fp16 and an fp32 side."""
    mixed = node_of(model, "tower/layers.1/MatMul_2")
    mixed.input[0] = node_of(model, "tower/layers.1/Softmax").output[0]


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (unknown_to_tensorrt, r"Det tower/layers\.1/Softmax.*"),
        (unknown_to_all, r"Sparkle projector/Gelu"),
        (two_types, r"tower/layers\.1/MatMul_2.*(type|Type)"),
    ],
)
def test_a_planted_fault_is_refused_with_its_node(
    spoilt: Callable[[Plant], Path], library: LoadedLibrary, plant: Plant, message: str
) -> None:
    path = spoilt(plant)
    assert not verdict(library, path)  # which agrees here too
    with pytest.raises(DyCokeError, match=message) as caught:
        compile_graph(library, path, [SM], profile_ranges(SIDE, 4))
    assert "\n" not in str(caught.value)
    assert "TensorRT for RTX" in str(caught.value)


def test_a_type_that_the_compiler_changes_is_found(
    spoilt: Callable[[Plant], Path], library: LoadedLibrary
) -> None:
    """An fp32 product alone between two casts is compiled in 16 bits, its constant included, though
    the network is strongly typed. This is why half the pooling matrix meets twice the values
    (1.7.1.116)."""

    def product_between_casts(model: Any) -> None:
        doubled = node_of(model, "pooling/Mul")
        node_of(model, "pooling/MatMul").input[1] = doubled.input[0]
        model.graph.node.remove(doubled)

    path = spoilt(product_between_casts)
    assert verdict(library, path)
    with pytest.raises(DyCokeError, match=r"holds constants in HALF, where the graph has FLOAT"):
        compile_graph(library, path, [SM], profile_ranges(SIDE, 4))
