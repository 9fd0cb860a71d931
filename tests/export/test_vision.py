"""The exported graph in ONNX Runtime against the source model and core/ttm.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from dycoke_trt.bundle.files import sha256
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.core.ttm import ttm_count, ttm_select
from dycoke_trt.export.checkpoint import Checkpoint
from dycoke_trt.export.vision import export_vision

IMAGE, N, D, K = 101, 16, 64, 0.7
PAPER = DyCokeConfig(k=K, l=1)
# Measured in ONNX Runtime on these tensors: 4.3e-4 (torch in half precision: 7.5e-4).
FP16_RELATIVE_ERROR = 1e-3
MARGIN = 1e-5


def with_outputs(path: Path, names: list[str]) -> Path:
    """A copy of a graph beside it whose inner values `names` are outputs too."""
    model = onnx.load(path, load_external_data=False)
    known = {value.name for value in model.graph.output}
    inferred = onnx.shape_inference.infer_shapes(model)
    values = {value.name: value for value in inferred.graph.value_info}
    model.graph.output.extend(values[name] for name in names if name not in known)
    onnx.save(model, path.with_name("marked.onnx"))
    return path.with_name("marked.onnx")


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
    export_vision(checkpoint, path, PAPER, Dtype.FP32, kept_rows=True)
    return path


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("count", [4, 8, 16, 32])
def test_fp32_equals_the_source_model(
    fp32: Path, hf_model: Any, checkpoint: Checkpoint, batch: int, count: int, run_onnx: Any
) -> None:
    video = frames(batch, count)
    out = run_onnx(fp32, {"frames": video})
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


def test_fp16_within_its_bound(
    checkpoint: Checkpoint, hf_model: Any, tmp_path: Path, run_onnx: Any
) -> None:
    path = tmp_path / "v.onnx"
    export_vision(checkpoint, path, PAPER, Dtype.FP16, kept_rows=True)
    video = frames(3, 8)
    out = run_onnx(with_outputs(path, ["pooling/output"]), {"frames": video})
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
    checkpoint: Checkpoint, hf_model: Any, tmp_path: Path, config: DyCokeConfig, run_onnx: Any
) -> None:
    path = tmp_path / "v.onnx"
    info = export_vision(checkpoint, path, config, Dtype.FP32, kept_rows=True)
    assert info.spec.compressor.kept == (N,)
    graph = onnx.load(path, load_external_data=False).graph
    assert not any(node.op_type == "TopK" for node in graph.node)
    video = frames(2, 4)
    embeds = run_onnx(path, {"frames": video})["visual_embeds"]
    features = source_features(hf_model, video).flatten(1, 2)
    torch.testing.assert_close(embeds[:, :-1], features, rtol=0, atol=1e-4)


def test_everything_but_the_first_frame_can_go(
    checkpoint: Checkpoint, hf_model: Any, tmp_path: Path, run_onnx: Any
) -> None:
    path = tmp_path / "v.onnx"
    info = export_vision(checkpoint, path, DyCokeConfig(k=0.99), Dtype.FP32, kept_rows=True)
    assert info.spec.compressor.kept == (N, 0, 0, 0)
    video = frames(2, 8)
    out = run_onnx(path, {"frames": video})
    want = source_features(hf_model, video)[:, ::4].flatten(1, 2)
    torch.testing.assert_close(out["visual_embeds"][:, :-1], want, rtol=0, atol=1e-4)


def test_duplicate_frames_keep_the_lowest_indices(fp32: Path, run_onnx: Any) -> None:
    out = run_onnx(fp32, {"frames": frames(2, 1).expand(-1, 8, -1, -1, -1)})
    lowest = [f * N + i for f in range(8) for i in range(N if f % 4 == 0 else 4)]
    assert out["kept_rows"].tolist() == [lowest] * 2


def test_a_video_does_not_see_its_neighbours(fp32: Path, run_onnx: Any) -> None:
    video = frames(3, 8)
    together = run_onnx(fp32, {"frames": video})
    for b in range(3):
        alone = run_onnx(fp32, {"frames": video[b : b + 1]})
        assert torch.equal(alone["kept_rows"][0], together["kept_rows"][b])
        torch.testing.assert_close(
            alone["visual_embeds"][0], together["visual_embeds"][b], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(("batch", "count"), [(1, 5), (2, 6), (4, 3), (4, 1)])
def test_frames_that_fill_no_window_fail(fp32: Path, batch: int, count: int, run_onnx: Any) -> None:
    with pytest.raises(Exception, match="cannot be reshaped"):
        run_onnx(fp32, {"frames": frames(batch, count)})


def test_names_follow_the_layers(
    checkpoint: Checkpoint, tmp_path: Path, hf_model: Any, run_onnx: Any
) -> None:
    path = tmp_path / "v.onnx"
    export_vision(checkpoint, path, PAPER, Dtype.FP32)
    props = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    layer_outputs = json.loads(props["layer_outputs"])
    assert layer_outputs == [
        "tower/embeddings/output",
        *(f"tower/layers.{i}/output" for i in range(3)),
        "projector/linear_2",
        "pooling/output",
    ]
    marked = with_outputs(path, layer_outputs)
    onnx.checker.check_model(str(marked), full_check=True)
    video = frames(1, 4)
    out = run_onnx(marked, {"frames": video})
    pixels = (video.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        states = hf_model.model.vision_tower(pixels[0], output_hidden_states=True).hidden_states
    for i, state in enumerate(states):
        name = layer_outputs[i]
        torch.testing.assert_close(out[name], state, rtol=0, atol=1e-4, msg=name)


def test_nodes_are_called_after_their_modules(fp32: Path) -> None:
    nodes = onnx.load(fp32, load_external_data=False).graph.node
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    assert {
        "tower/layers.2/fc1/MatMul",
        "tower/layers.0/norm2/LayerNormalization",
        "projector/Gelu",
        "pooling/MatMul",
        "compress/TopK_2",
    } <= set(names)


def test_the_weights_exist_once(
    checkpoint: Checkpoint, fp32: Path, tmp_path: Path, run_onnx: Any
) -> None:
    """The graph points into the safetensors file, wherever the two lie."""
    from safetensors.torch import load_file

    weights = load_file(fp32.with_name("vision.safetensors"))
    assert torch.equal(weights["image_newline"], checkpoint.tensor("image_newline"))
    kernel = checkpoint.tensor("vision.embeddings.patch_embedding.weight").flatten(1).t()
    assert torch.equal(weights["tower.patch_embedding.weight"], kernel)
    model = onnx.load(fp32, load_external_data=False)
    outside = {t.name for t in model.graph.initializer if t.external_data}
    assert outside == weights.keys()
    assert fp32.stat().st_size < 60_000
    moved = Path(shutil.copytree(fp32.parent, tmp_path / "moved"))
    onnx.checker.check_model(str(moved / fp32.name), full_check=True)
    video = frames(2, 4)
    here, there = run_onnx(fp32, {"frames": video}), run_onnx(moved / fp32.name, {"frames": video})
    assert all(torch.equal(here[name], value) for name, value in there.items())
    assert str(Path(torch.__file__).parent) not in fp32.read_bytes().decode("latin-1")


def test_the_processors_pixel_scale_is_used(
    rewrite: Any, tmp_path: Path, hf_model: Any, run_onnx: Any
) -> None:
    from dycoke_trt.export.checkpoint import open_checkpoint

    directory = rewrite("transformers4")
    mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    values = {"image_mean": mean, "image_std": std, "size": {"height": IMAGE, "width": IMAGE}}
    (directory / "preprocessor_config.json").write_text(json.dumps(values))
    path = tmp_path / "v.onnx"
    export_vision(open_checkpoint(directory), path, DyCokeConfig.off(), Dtype.FP32)
    video = frames(1, 4)
    shape = (1, 1, 3, 1, 1)
    pixels = (video / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    with torch.no_grad():
        want = hf_model.model.get_video_features(pixels).pooler_output
    found = run_onnx(path, {"frames": video})["visual_embeds"]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-4)
    values["size"] = {"height": 384, "width": 384}
    (directory / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(DyCokeError, match=r"size makes frames .*384.*takes 101 x 101"):
        export_vision(open_checkpoint(directory), path, DyCokeConfig.off(), Dtype.FP32)


@pytest.mark.parametrize("mode", ["reference", "random"])
def test_other_ttm_modes_are_refused(checkpoint: Checkpoint, tmp_path: Path, mode: Any) -> None:
    with pytest.raises(DyCokeError, match=f"ttm='{mode}' cannot be exported; allowed: off, paper"):
        export_vision(checkpoint, tmp_path / "v.onnx", DyCokeConfig(ttm=mode), Dtype.FP32)
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
        export_vision(checkpoint, tmp_path / "v.onnx", PAPER, Dtype.FP16)
    assert list(tmp_path.iterdir()) == []


def test_a_bare_llm_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from dataclasses import replace

    bare = Checkpoint(tmp_path, replace(checkpoint.config, kind="qwen2", vision=None), {}, "")
    with pytest.raises(DyCokeError, match="no vision tower"):
        export_vision(bare, tmp_path / "v.onnx", PAPER, Dtype.FP32)


def test_what_was_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    info = export_vision(checkpoint, tmp_path / "v.onnx", PAPER, Dtype.BF16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.onnx", "vision.safetensors"]
    assert info.hashes == {"vision.safetensors": sha256(tmp_path / "vision.safetensors")}
    assert info.spec.tower == checkpoint.vision
    assert info.spec.compressor.kept == (N, 4, 4, 4)
    props = {p.key: p.value for p in onnx.load(tmp_path / "v.onnx").metadata_props}
    assert (props["dtype"], props["tokens_per_frame"]) == ("bf16", str(N))
