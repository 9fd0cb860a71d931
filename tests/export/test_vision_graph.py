"""The vision graph as ONNX: operators and types, the real size."""

import json
import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from dycoke_trt.arch.siglip import VisionModel, stage_names
from dycoke_trt.arch.spec import PixelScale, TowerSpec, VisionSpec
from dycoke_trt.bundle.paths import VISION_WEIGHTS
from dycoke_trt.bundle.safetensors_file import SafetensorsFile
from dycoke_trt.compress.ttm import Ttm
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.export.checkpoint import Checkpoint
from dycoke_trt.export.vision import export_vision
from dycoke_trt.export.vision_graph import finish_graph, trace_graph
from dycoke_trt.tests.export.tensorrt_operators import TENSORRT_OPERATORS
from safetensors.torch import save_file

N, D = 16, 64
PAPER = DyCokeConfig(k=0.7, l=1)


@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.FP16, Dtype.BF16])
def test_checker_and_types(checkpoint: Checkpoint, tmp_path: Path, dtype: Dtype) -> None:
    path = tmp_path / "v.onnx"
    export_vision(checkpoint, path, PAPER, dtype, kept_rows=True)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.shape_inference.infer_shapes(
        onnx.load(path, load_external_data=False), check_type=True, strict_mode=True, data_prop=True
    )
    weights = {onnx.TensorProto.DataType.Name(i.data_type) for i in model.graph.initializer}
    kind = {Dtype.FP32: "FLOAT", Dtype.FP16: "FLOAT16", Dtype.BF16: "BFLOAT16"}[dtype]
    assert weights <= {"FLOAT", "INT32", "INT64", kind}
    outputs = {o.name: o.type.tensor_type for o in model.graph.output}
    assert outputs.keys() == {"visual_embeds", "kept_rows"}
    assert onnx.TensorProto.DataType.Name(outputs["visual_embeds"].elem_type) == kind
    assert [d.dim_value for d in outputs["visual_embeds"].shape.dim][2] == D
    props = {p.key: p.value for p in model.metadata_props}
    assert DyCokeConfig.from_json(props["dycoke"]) == PAPER
    assert props["source_revision"] == checkpoint.revision
    assert json.loads(props["layer_outputs"]) == stage_names(3)


@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.FP16, Dtype.BF16])
def test_only_operators_that_tensorrt_lists(
    checkpoint: Checkpoint, tmp_path: Path, dtype: Dtype
) -> None:
    path = tmp_path / "v.onnx"
    export_vision(checkpoint, path, PAPER, dtype, kept_rows=True)
    model = onnx.shape_inference.infer_shapes(
        onnx.load(path, load_external_data=False), data_prop=True
    )
    assert model.opset_import[0].version == 20
    assert model.ir_version == 9
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {i.name: i.data_type for i in graph.initializer}
    constants = {i.name for i in graph.initializer}
    used = set()
    for node in graph.node:
        used.add(node.op_type)
        allowed = TENSORRT_OPERATORS[node.op_type]
        for name in node.input:
            found = onnx.TensorProto.DataType.Name(types[name]).lower()
            assert found in allowed, f"{node.name}: {found}"
            assert found != "uint8" or node.op_type == "Cast"
        if node.op_type in ("TopK", "ReduceSum", "ReduceL2"):
            assert node.input[1] in constants
    assert used == set(TENSORRT_OPERATORS)


def test_the_graph_of_the_real_size_is_well_formed(tmp_path: Path, run_onnx: Any) -> None:
    """384 x 384, 27 x 27 patches, 196 tokens, K = 0.7: M as in the paper's setting."""

    tower = TowerSpec(
        layers=1, hidden=16, intermediate=24, heads=2, image_size=384, layer_norm_eps=1e-6,
        tanh_gelu=True,
    )  # fmt: skip
    spec = VisionSpec(tower, 8, PixelScale(), Ttm(196, 0.7), "one_token")
    model = VisionModel(spec, torch.float32)
    random = {
        name: torch.randn(parameter.shape) / 4 for name, parameter in model.named_parameters()
    }
    save_file(random, tmp_path / VISION_WEIGHTS)
    weights = SafetensorsFile(tmp_path / VISION_WEIGHTS)
    path = tmp_path / "v.onnx"
    path.write_bytes(finish_graph(trace_graph(spec, torch.float32), weights, {}, kept_rows=False))
    video = torch.randint(0, 256, (1, 8, 3, 384, 384), dtype=torch.uint8)
    embeds = run_onnx(path, {"frames": video})["visual_embeds"]
    assert embeds.shape == (1, math.ceil(2960 / 4) + 1, 8)
    model.load_state_dict(random, assign=True)
    torch.testing.assert_close(embeds, model(video), rtol=0, atol=1e-4)
