"""`dycoke build --vision rtx`: engines by NVIDIA's own compiler, its refusals, and loading them.

Nothing here runs an engine: without a GPU the library refuses to load one, and says why.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.bundle.files import open_bundle
from dycoke_trt.bundle.record import EngineRecord, write_record
from dycoke_trt.bundle.vision_record import read_vision_record
from dycoke_trt.cli.ask import ask
from dycoke_trt.cli.build import build
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.engines.rtx_compiler import (
    CompiledEngine,
    check_io,
    compile_graph,
    known_capabilities,
)
from dycoke_trt.engines.vision_plan import profile_ranges
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime import protocol as p
from dycoke_trt.runtime.nvidia_smi import visible_gpus
from dycoke_trt.runtime.tensorrt_library import TENSORRT_RTX
from dycoke_trt.runtime.vision import load_vision
from dycoke_trt.tests.support import assert_one_line, demo_bundle, dycoke
from dycoke_trt.triton_repo.launcher import serving
from dycoke_trt.triton_repo.repository import write_repository

pytestmark = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None, reason="needs TensorRT for RTX"
)
without_gpu = pytest.mark.skipif(bool(visible_gpus()), reason="there is a GPU")
BUILD = ("--vision", "rtx", "--target")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle in bf16, for two GPUs of different generations."""
    bundle: Path = tmp_path_factory.mktemp("rtx") / "bundle"
    export_bundle(MODEL_DIR, bundle, DyCokeConfig(), dtype="bfloat16", max_frames=12)
    done = dycoke("build", bundle, *BUILD, "rtx4090", "--target", "rtx5090", "--target", "l4")
    assert done.returncode == 0, done.stderr
    assert "TensorRT for RTX" in done.stdout
    assert "sm_89, sm_120" in done.stdout
    assert "not run" in done.stdout
    return bundle


def test_the_record_is_complete(built: Path) -> None:
    manifest = open_bundle(built)
    record = read_vision_record(built, manifest, version=TENSORRT_RTX.version, hashes=True)
    assert record.bundle_hash == manifest.identity
    assert record.version == TENSORRT_RTX.version
    assert record.targets == ["rtx4090", "rtx5090", "l4"]
    assert record.sms == [89, 120]
    assert record.dtype == "bfloat16"
    side = manifest.vision.image_size
    ranges = profile_ranges(side, 12)
    assert [tuple(least) for least, _, _ in record.profiles] == [r.least for r in ranges]
    assert [tuple(most) for _, _, most in record.profiles] == [r.most for r in ranges]
    assert record.weights == "included"
    assert record.checked_layers > 50
    assert record.activations > 1_000_000
    assert list(record.files) == ["vision_ttm.plan"]
    # Engines lie outside of the bundle's hash: it opens, and is the same bundle.
    assert not any(name.startswith("engines") for name in manifest.parts)


def test_what_does_not_fit_is_refused_with_the_way_out(built: Path, tmp_path: Path) -> None:
    manifest = open_bundle(built)
    for sm in (89, 120):
        assert read_vision_record(built, manifest, sm=sm)
    with pytest.raises(
        DyCokeError, match=r"for sm_89, sm_120, this GPU is sm_86; run: .* this-gpu"
    ):
        read_vision_record(built, manifest, sm=86)
    with pytest.raises(
        DyCokeError,
        match=r"built by TensorRT for RTX 1\S+, here it is 9\.9; run: dycoke build \S+ "
        r"--vision rtx --target rtx4090 --target rtx5090 --target l4",
    ):
        read_vision_record(built, manifest, version="9.9")
    other = tmp_path / "bundle"
    shutil.copytree(built, other)
    folder = other / "engines" / "rtx"
    whole = (folder / "vision_ttm.plan").read_bytes()
    (folder / "vision_ttm.plan").write_bytes(whole[:-1])
    with pytest.raises(DyCokeError, match=rf"has {len(whole) - 1} bytes, record\.json says"):
        read_vision_record(other, manifest)
    (folder / "vision_ttm.plan").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert read_vision_record(other, manifest)
    with pytest.raises(DyCokeError, match=r"has sha256"):
        read_vision_record(other, manifest, hashes=True)
    record = json.loads((folder / "record.json").read_text())
    for changes, message in (
        ({"bundle_hash": "0" * 64}, "built from bundle 000000000000"),
        ({"sms": []}, "record.json: sms"),
        ({"weights": "some"}, "record.json: weights"),
    ):
        (folder / "record.json").write_text(json.dumps(record | changes))
        with pytest.raises(DyCokeError, match=message):
            read_vision_record(other, manifest)
    shutil.rmtree(folder)
    with pytest.raises(DyCokeError, match="is missing, so no engine was built; run: dycoke build"):
        read_vision_record(other, manifest)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"target": ["h100"]}, ("h100 is sm_90", "sm_89", "rtx4090", "--vision tensorrt")),
        ({"target": ["l4", "h200"]}, ("h200 is sm_90",)),
        ({"target": ["b200"]}, ("b200 is sm_100",)),
        ({"target": ["cpu"]}, ("--target cpu is no GPU; allowed: a100", "b200, this-gpu")),
        ({"target": ["voodoo2"]}, ("unknown target 'voodoo2'",)),
        (
            {"target": ["l4"], "kv_tokens": 8},
            ("--kv-tokens 8 has no effect with --vision rtx, which builds no LLM engine",),
        ),
        ({}, ("--target rtx4090",)),
        ({"vision": "opengl", "target": ["l4"]}, ("allowed: tensorrt, rtx",)),
        ({"vision": None, "target": ["l4", "l40s"]}, ("only --vision rtx builds for several",)),
        (
            {"vision": None, "target": ["l4"], "strip_weights": True},
            ("--strip-weights has no effect with --target l4; it is for --vision rtx",),
        ),
        (
            {"vision": "tensorrt", "target": ["cpu"]},
            ("--vision tensorrt has no effect with --target cpu",),
        ),
    ],
)
def test_refusals(built: Path, options: dict[str, Any], messages: tuple[str, ...]) -> None:
    with pytest.raises(DyCokeError) as caught:
        build(built, **{"vision": "rtx", **options})
    for message in messages:
        assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_is_one_line_for_a_user(built: Path) -> None:
    assert_one_line(dycoke("build", built, *BUILD, "h100"), "h100 is sm_90", "--target cuda")


@without_gpu
def test_an_engine_without_weights_needs_a_gpu(built: Path) -> None:
    """So says dycoke; so does the library, whatever the graph (1.7.1.116)."""
    with pytest.raises(DyCokeError, match=r"--strip-weights: .* only where a GPU is"):
        build(built, target=["l4"], vision="rtx", strip_weights=True)
    with pytest.raises(DyCokeError, match=r"built no engine: .*CUDA"):
        compile_graph(
            TENSORRT_RTX.load(),
            built / "vision_ttm.onnx",
            [89],
            profile_ranges(96, 4),
            strip_weights=True,
        )


def test_an_engine_that_is_not_what_the_manifest_says(built: Path) -> None:
    manifest = open_bundle(built)
    library = TENSORRT_RTX.load()
    engine = compile_graph(library, built / "vision_ttm.onnx", [80], profile_ranges(96, 4))
    check_io(engine, manifest, "it")
    other = manifest.model_copy(
        update={"vision": manifest.vision.model_copy(update={"dtype": Dtype.FP16})}
    )
    with pytest.raises(DyCokeError, match=r"visual_embeds as Output BF16 .* says Output HALF"):
        check_io(engine, other, "it")
    larger = manifest.model_copy(
        update={"vision": manifest.vision.model_copy(update={"image_size": 384})}
    )
    with pytest.raises(DyCokeError, match=r"frames as Input UInt8 \[1, 4, 3, 96, 96\]"):
        check_io(engine, larger, "it")
    more = CompiledEngine(
        engine.plan, engine.layers, engine.io | {"x": engine.io["frames"]}, 0, 0.0
    )
    with pytest.raises(DyCokeError, match="has frames, visual_embeds, x"):
        check_io(more, manifest, "it")


def test_the_compilers_gpus() -> None:
    """A new one in the library is one that the documentation does not have yet."""
    assert known_capabilities(TENSORRT_RTX.load()) == [75, 80, 86, 89, 120, 121]


@without_gpu
def test_loading_here_is_refused_with_nvidias_reason(built: Path) -> None:
    with pytest.raises(DyCokeError) as caught:
        load_vision(built, "cuda", kind="rtx")
    assert "\n" not in str(caught.value)
    assert "cannot load it (Error reading CUDA GPU properties" in str(caught.value)
    assert "run: dycoke build" in str(caught.value)


@without_gpu
def test_a_server_says_it_too(built: Path, tmp_path: Path) -> None:
    """A real server with the vision model alone, as `--vision rtx` configures it."""
    record = EngineRecord(
        target="cuda", bundle_hash=open_bundle(built).identity, backend="native",
        tokens_per_block=16, kv_tokens=512, max_batch=1, versions={},
    )  # fmt: skip
    write_record(built / "engines" / "cuda", record)
    repository = write_repository(
        built, tmp_path / "models", build="cuda", vision="rtx", vision_cuda_graph=True
    )
    text = (repository / p.VISION / "config.pbtxt").read_text()
    for key, value in (("vision", "rtx"), ("cuda_graph", "true"), ("embeds_memory", "cpu")):
        assert f'key: "{key}" value {{ string_value: "{value}" }}' in text
    for folder in repository.iterdir():
        if folder.is_dir() and folder.name != p.VISION:
            shutil.rmtree(folder)
    with (
        pytest.raises(DyCokeError, match=r"did not start: .*Error reading CUDA GPU properties"),
        serving(repository),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["B", "Why?"], {"vision": "rtx"}, "--vision rtx does not go with --target cpu"),
        (["B", "Why?"], {"target": "cuda", "vision": "tensorrt"}, "--vision tensorrt does not go"),
        (["Why?"], {"server": "x:1", "vision": "rtx"}, "no effect with --server"),
    ],
)
def test_where_it_cannot_be_asked_for(
    words: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DyCokeError, match=message):
        ask(words, **options)


def test_what_repositories_can_have(tmp_path: Path) -> None:
    bundle = demo_bundle(DyCokeConfig())
    for options, message in (
        ({"vision": "rtx"}, "--vision rtx does not go with --target cpu; allowed: native"),
        ({"vision": "cuda"}, "allowed: auto, native, tensorrt, rtx"),
        ({"vision_cuda_graph": True}, "--vision-cuda-graph has no effect with --vision native"),
    ):
        with pytest.raises(DyCokeError, match=message):
            write_repository(bundle, tmp_path / "m", **options)
