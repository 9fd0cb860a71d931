"""The stages of the vision graph alone: TTM on ties, pooling, operators, types."""

import json
import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.ttm import ttm_merge, ttm_select
from dycoke_trt.cost.dims import VisionDims
from dycoke_trt.export.checkpoint import Checkpoint
from dycoke_trt.export.model_config import VisionConfig
from dycoke_trt.export.names import vision_shapes
from dycoke_trt.export.onnx_graph import GraphBuilder, value_info
from dycoke_trt.export.preprocessing import PixelScale
from dycoke_trt.export.tensorrt_operators import TENSORRT_OPERATORS
from dycoke_trt.export.vision import export_vision
from dycoke_trt.export.vision_graph import VisionGraph, pooling_matrix
from hypothesis import given, settings
from hypothesis import strategies as st

N, D = 16, 64
PAPER = DyCokeConfig(k=0.7, l=1)


@pytest.fixture(scope="module")
def ttm_only(
    onnx_session: Any, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A function k -> session of TTM alone: `features` fp32 [B,F,N,D] -> embeddings, rows."""
    sessions = {}

    def make(keep: int) -> Any:
        if keep not in sessions:
            path = tmp_path_factory.mktemp("ttm") / "ttm.onnx"
            assert checkpoint.vision is not None
            with GraphBuilder("ttm") as graph:
                stage = VisionGraph(graph, checkpoint.tensor, checkpoint.vision, 3, torch.float32)
                flat = graph.reshape("flat", "features", [-1, N, 3])
                batch = graph.node("Shape", "batch", "features", start=0, end=1)
                merged = stage.ttm(flat, keep, batch, "rows")
                value = value_info("features", torch.float32, ["b", "f", N, 3])
                outputs = [
                    value_info(merged, torch.float32, ["b", "m", 3]),
                    value_info("rows", torch.int64, ["b", "m"]),
                ]
                graph.save(path, [value], outputs, {})
            sessions[keep] = onnx_session(path)
        return sessions[keep]

    return make


@settings(max_examples=100)
@given(st.data())
def test_ttm_equals_the_reference_on_ties_and_zeros(ttm_only: Any, data: st.DataObject) -> None:
    # Small whole numbers: many equal and zero vectors, and the same sums in any order.
    k = data.draw(st.sampled_from([0.3, 0.5, 0.7, 0.9, 0.95]))
    batch, windows = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    seed, top = data.draw(st.integers(0, 2**32)), data.draw(st.integers(0, 2))
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 4 * windows, N, 3)
    features = torch.randint(-top, top + 1, shape, generator=generator).float()
    merged, rows = ttm_only(int((1 - k) * N)).run(None, {"features": features.numpy()})
    for b in range(batch):
        assert rows[b].tolist() == ttm_select(features[b], k).tolist()
        assert torch.equal(torch.from_numpy(merged[b]), ttm_merge(features[b], k))


@pytest.mark.parametrize("side", [1, 2, 5, 7, 27])
def test_pooling_is_the_source_models(hf_model: Any, side: int) -> None:
    pooled = (side + 1) // 2
    x = torch.randn(2, side * side, 5)
    image = x.view(2, side, side, 5).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(image, size=[pooled, pooled], mode="bilinear")
    found = pooling_matrix(side) @ x
    torch.testing.assert_close(found, want.permute(0, 2, 3, 1).flatten(1, 2), rtol=0, atol=1e-6)
    if side == 7:
        x = torch.randn(2, side * side, D)
        want = hf_model.model.apply_pooling(x)
        torch.testing.assert_close(pooling_matrix(side) @ x, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_checker_and_types(checkpoint: Checkpoint, tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "v.onnx"
    info = export_vision(checkpoint, path, PAPER, dtype, kept_rows=True)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.shape_inference.infer_shapes(
        onnx.load(path), check_type=True, strict_mode=True, data_prop=True
    )
    weights = {onnx.TensorProto.DataType.Name(i.data_type) for i in model.graph.initializer}
    kind = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}[dtype]
    assert weights <= {"FLOAT", "INT32", "INT64", kind}
    outputs = {o.name: o.type.tensor_type for o in model.graph.output}
    assert outputs.keys() == {"visual_embeds", "kept_rows"}
    assert onnx.TensorProto.DataType.Name(outputs["visual_embeds"].elem_type) == kind
    assert [d.dim_value for d in outputs["visual_embeds"].shape.dim][2] == D
    props = {p.key: p.value for p in model.metadata_props}
    assert DyCokeConfig.from_json(props["dycoke"]) == PAPER
    assert props["source_revision"] == checkpoint.revision
    assert tuple(json.loads(props["layer_outputs"])) == info.layer_outputs


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_only_operators_that_tensorrt_lists(
    checkpoint: Checkpoint, tmp_path: Path, dtype: Any
) -> None:
    path = tmp_path / "v.onnx"
    export_vision(checkpoint, path, PAPER, dtype, kept_rows=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    assert model.opset_import[0].version == 20
    assert model.ir_version == 9
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input]}
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

    vision = VisionConfig(VisionDims(layers=1, hidden=16, intermediate=24), 2, 384, 1e-6, True)
    shapes = vision_shapes(vision, 8)
    path = tmp_path / "v.onnx"
    with GraphBuilder("v") as graph:
        stage = VisionGraph(
            graph, lambda name: torch.randn(shapes[name]) / 4, vision, 8, torch.float32
        )
        x = stage.pooling(stage.projector(stage.tower(stage.pixels("frames", PixelScale()))))
        batch = graph.node("Shape", "batch", "pixels/float", start=0, end=1)
        stage.newline(stage.ttm(x, int(0.3 * 196), batch), batch, "visual_embeds")
        inputs = [value_info("frames", torch.uint8, ["b", "f", 3, 384, 384])]
        graph.save(path, inputs, [value_info("visual_embeds", torch.float32, ["b", "v", 8])], {})
    video = torch.randint(0, 256, (1, 8, 3, 384, 384), dtype=torch.uint8)
    embeds = run_onnx(path, {"frames": video})["visual_embeds"]
    assert embeds.shape == (1, math.ceil(2960 / 4) + 1, 8)
