"""The exported graph in ONNX Runtime against the source model and core/ttm.py."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.core.ttm import ttm_count, ttm_merge, ttm_select
from dycoke_trt.export.checkpoint import Checkpoint
from dycoke_trt.export.onnx_graph import GraphBuilder, value_info
from dycoke_trt.export.vision import VisionExport, export_vision, mark_outputs
from dycoke_trt.export.vision_graph import TENSORRT_OPERATORS, VisionGraph, pooling_matrix
from hypothesis import given, settings
from hypothesis import strategies as st

IMAGE, N, D, K = 101, 16, 64, 0.7
PAPER = DyCokeConfig(k=K, l=1)
# Measured in ONNX Runtime on these tensors: 4.3e-4 (torch in half precision: 7.5e-4).
FP16_RELATIVE_ERROR = 1e-3
MARGIN = 1e-5


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, feeds: dict[str, Any]) -> dict[str, torch.Tensor]:
    ort = session(path)
    values = ort.run(None, {name: np.asarray(value) for name, value in feeds.items()})
    return {o.name: torch.from_numpy(v) for o, v in zip(ort.get_outputs(), values, strict=True)}


def assert_same_where_clear(rows: torch.Tensor, features: torch.Tensor) -> tuple[int, int]:
    """Rows of one video [M] against core's for its features [F,N,D], cut by cut.

    Returns how many cuts have a margin above MARGIN, and how many there are.
    """
    margins, want = cut_margins(features), ttm_select(features, K)
    frame = [4 * (cut // 3) + 1 + cut % 3 for cut in range(len(margins))]
    clear = [f for f, margin in zip(frame, margins.tolist(), strict=True) if margin > MARGIN]
    for f in {*clear, *range(0, len(features), 4)}:
        assert torch.equal(rows[rows // N == f], want[want // N == f])
    return len(clear), len(frame)


def frames(batch: int, count: int, seed: int = 0) -> torch.Tensor:
    """uint8 [B,F,3,H,W]: noise around a slowly changing picture, so that frames resemble."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 1, 3, IMAGE, IMAGE)
    still = torch.randint(0, 256, shape, generator=generator)
    noise = torch.randint(-60, 61, (batch, count, *shape[2:]), generator=generator)
    return (still + noise).clamp(0, 255).to(torch.uint8)


def source_features(hf_model: Any, video: torch.Tensor) -> Any:
    """The source model's features before TTM, without newline: [B,F,N,D]."""
    pixels = (video.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        features = hf_model.model.get_video_features(pixels).pooler_output
    assert torch.equal(features[:, -1], hf_model.model.image_newline.expand(len(video), -1))
    return features[:, :-1].reshape(*video.shape[:2], N, D)


def cut_margins(features: torch.Tensor) -> torch.Tensor:
    """[F,N,D] -> for each compared frame, how far apart the last kept and first dropped are."""
    windows = features.float().unflatten(0, (-1, 4))
    a, b = windows[:, [1, 2, 3]], windows[:, [0, 0, 2]]
    cosines = torch.cosine_similarity(a, b, dim=-1).flatten(0, 1)
    ranked = cosines.sort(dim=-1).values
    keep = int((1 - K) * N)
    margins: torch.Tensor = ranked[:, keep] - ranked[:, keep - 1]
    return margins


@pytest.fixture(scope="module")
def fp32(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "vision_ttm.onnx"
    export_vision(checkpoint, path, PAPER, "fp32", kept_rows=True)
    return path


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("count", [4, 8, 16, 32])
def test_fp32_equals_the_source_model(
    fp32: Path, hf_model: Any, checkpoint: Checkpoint, batch: int, count: int
) -> None:
    video = frames(batch, count)
    out = run(fp32, {"frames": video})
    features = source_features(hf_model, video)
    assert out["visual_embeds"].shape == (batch, ttm_count(count, N, K) + 1, D)
    clear = total = 0
    for b in range(batch):
        rows = out["kept_rows"][b]
        counts = assert_same_where_clear(rows, features[b])
        clear, total = clear + counts[0], total + counts[1]
        merged = features[b].flatten(0, 1)[rows]
        torch.testing.assert_close(out["visual_embeds"][b, :-1], merged, rtol=0, atol=1e-4)
    assert clear >= 0.95 * total
    newline = checkpoint.tensor("image_newline").expand(batch, -1)
    assert torch.equal(out["visual_embeds"][:, -1], newline)


def test_fp16_within_its_bound(checkpoint: Checkpoint, hf_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "v.onnx"
    export_vision(checkpoint, path, PAPER, "fp16", kept_rows=True)
    model = onnx.load(path)
    mark_outputs(model, ["pooling/output"])
    onnx.save(model, path)
    video = frames(3, 8)
    out = run(path, {"frames": video})
    source = source_features(hf_model, video)
    pooled = out["pooling/output"].view_as(source)
    assert pooled.dtype == torch.float16
    assert (pooled.float() - source).norm() <= FP16_RELATIVE_ERROR * source.norm()
    for b in range(3):  # the selection is right for the features that the graph itself has
        clear, total = assert_same_where_clear(out["kept_rows"][b], pooled[b])
        assert clear >= 0.95 * total
        merged = pooled[b].flatten(0, 1)[out["kept_rows"][b]]
        assert torch.equal(out["visual_embeds"][b, :-1], merged)


@pytest.mark.parametrize("config", [DyCokeConfig(k=0.0), DyCokeConfig(ttm="off")])
def test_without_ttm_there_are_no_ttm_nodes(
    checkpoint: Checkpoint, hf_model: Any, tmp_path: Path, config: DyCokeConfig
) -> None:
    path = tmp_path / "v.onnx"
    info = export_vision(checkpoint, path, config, "fp32", kept_rows=True)
    assert info.n_keep is None
    graph = onnx.load(path).graph
    assert not any("ttm" in node.name or node.op_type == "TopK" for node in graph.node)
    video = frames(2, 4)
    embeds = run(path, {"frames": video})["visual_embeds"]
    features = source_features(hf_model, video).flatten(1, 2)
    torch.testing.assert_close(embeds[:, :-1], features, rtol=0, atol=1e-4)


def test_everything_but_the_first_frame_can_go(
    checkpoint: Checkpoint, hf_model: Any, tmp_path: Path
) -> None:
    path = tmp_path / "v.onnx"
    info = export_vision(checkpoint, path, DyCokeConfig(k=0.99), "fp32", kept_rows=True)
    assert info.n_keep == 0
    video = frames(2, 8)
    out = run(path, {"frames": video})
    want = source_features(hf_model, video)[:, ::4].flatten(1, 2)
    torch.testing.assert_close(out["visual_embeds"][:, :-1], want, rtol=0, atol=1e-4)


def test_duplicate_frames_keep_the_lowest_indices(fp32: Path) -> None:
    out = run(fp32, {"frames": frames(2, 1).expand(-1, 8, -1, -1, -1)})
    lowest = [f * N + i for f in range(8) for i in range(N if f % 4 == 0 else 4)]
    assert out["kept_rows"].tolist() == [lowest] * 2


def test_a_video_does_not_see_its_neighbours(fp32: Path) -> None:
    video = frames(3, 8)
    together = run(fp32, {"frames": video})
    for b in range(3):
        alone = run(fp32, {"frames": video[b : b + 1]})
        assert torch.equal(alone["kept_rows"][0], together["kept_rows"][b])
        torch.testing.assert_close(
            alone["visual_embeds"][0], together["visual_embeds"][b], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(("batch", "count"), [(1, 5), (2, 6), (4, 3), (4, 1)])
def test_frames_that_fill_no_window_fail(fp32: Path, batch: int, count: int) -> None:
    with pytest.raises(Exception, match="ttm/by_video"):
        run(fp32, {"frames": frames(batch, count)})


@pytest.fixture(scope="module")
def ttm_only(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function k -> session of TTM alone: `features` fp32 [B,F,N,D] -> embeddings, rows."""
    sessions = {}

    def make(keep: int) -> onnxruntime.InferenceSession:
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
            sessions[keep] = session(path)
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


def test_names_follow_the_layers(checkpoint: Checkpoint, tmp_path: Path, hf_model: Any) -> None:
    path = tmp_path / "v.onnx"
    info = export_vision(checkpoint, path, PAPER, "fp32")
    assert info.layer_outputs == (
        "tower/embeddings/output",
        *(f"tower/layers.{i}/output" for i in range(3)),
        "projector/linear_2",
        "pooling/output",
        "ttm/output",
    )
    model = onnx.load(path)
    mark_outputs(model, [*info.layer_outputs, "visual_embeds"])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    video = frames(1, 4)
    out = run(path, {"frames": video})
    pixels = (video.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        states = hf_model.model.vision_tower(pixels[0], output_hidden_states=True).hidden_states
    for i, state in enumerate(states):
        name = info.layer_outputs[i]
        torch.testing.assert_close(out[name], state, rtol=0, atol=1e-4, msg=name)


def test_external_data(checkpoint: Checkpoint, fp32: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.onnx"
    info = export_vision(checkpoint, path, PAPER, "fp32", kept_rows=True, external_bytes=0)
    assert info.files == ("v.onnx", "v.onnx.data")
    assert path.stat().st_size < 60_000 < path.with_name("v.onnx.data").stat().st_size
    onnx.checker.check_model(str(path), full_check=True)
    video = frames(2, 4)
    inline, external = run(fp32, {"frames": video}), run(path, {"frames": video})
    for name, value in inline.items():
        assert torch.equal(external[name], value)


def test_the_processors_pixel_scale_is_used(rewrite: Any, tmp_path: Path, hf_model: Any) -> None:
    from dycoke_trt.export.checkpoint import open_checkpoint

    directory = rewrite("transformers4")
    mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    values = {"image_mean": mean, "image_std": std, "size": {"height": IMAGE, "width": IMAGE}}
    (directory / "preprocessor_config.json").write_text(json.dumps(values))
    path = tmp_path / "v.onnx"
    export_vision(open_checkpoint(directory), path, DyCokeConfig.off(), "fp32")
    video = frames(1, 4)
    shape = (1, 1, 3, 1, 1)
    pixels = (video / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    with torch.no_grad():
        want = hf_model.model.get_video_features(pixels).pooler_output
    found = run(path, {"frames": video})["visual_embeds"]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-4)
    values["size"] = {"height": 384, "width": 384}
    (directory / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(DyCokeError, match=r"resizes to .*384.*takes 101 x 101"):
        export_vision(open_checkpoint(directory), path, DyCokeConfig.off(), "fp32")


@pytest.mark.parametrize("mode", ["reference", "random"])
def test_other_ttm_modes_are_refused(checkpoint: Checkpoint, tmp_path: Path, mode: Any) -> None:
    with pytest.raises(DyCokeError, match=f"ttm='{mode}' cannot be exported; allowed: paper, off"):
        export_vision(checkpoint, tmp_path / "v.onnx", DyCokeConfig(ttm=mode), "fp32")
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_fp16_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Checkpoint.tensor

    def huge(self: Checkpoint, name: str) -> torch.Tensor:
        return original(self, name) * (1e6 if name == "projector.linear_2.weight" else 1)

    monkeypatch.setattr(Checkpoint, "tensor", huge)
    with pytest.raises(
        DyCokeError, match=r"projector.linear_2.weight is not finite in torch.float16"
    ):
        export_vision(checkpoint, tmp_path / "v.onnx", PAPER, "fp16", external_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_the_graph_of_the_real_size_is_well_formed(tmp_path: Path) -> None:
    """384 x 384, 27 x 27 patches, 196 tokens, K = 0.7: M as in the paper's setting."""
    from dycoke_trt.core.dims import VisionDims
    from dycoke_trt.export.model_config import VisionConfig
    from dycoke_trt.export.names import vision_shapes
    from dycoke_trt.export.preprocessing import PixelScale

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
    embeds = run(path, {"frames": video})["visual_embeds"]
    assert embeds.shape == (1, math.ceil(2960 / 4) + 1, 8)


def test_a_bare_llm_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from dataclasses import replace

    bare = Checkpoint(tmp_path, replace(checkpoint.config, kind="qwen2", vision=None), {}, "")
    with pytest.raises(DyCokeError, match="no vision tower"):
        export_vision(bare, tmp_path / "v.onnx", PAPER, "fp32")


def test_what_was_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    info = export_vision(checkpoint, tmp_path / "v.onnx", PAPER, "bf16")
    assert isinstance(info, VisionExport)
    assert (info.files, info.dtype, info.tokens_per_frame, info.n_keep) == (
        ("v.onnx",),
        "bf16",
        N,
        4,
    )
