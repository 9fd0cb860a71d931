"""The network that TensorRT-LLM's own Python files define with our model class, recorded and run.

    TRTLLM_SOURCE_DIR=DIR pytest tests/engines/test_trtllm_network.py

DIR holds tensorrt_llm/ of a release; test names say which. trtllm-build runs as it is, by our own
build_llm_engine; what is compiled there is stood for (network/record.py). The recorded network is
evaluated in torch on a CPU, our plugins by the very kernels in Triton's interpreter, in a process
of its own (network/inside). With DYCOKE_TENSORRT_INCLUDE they run through the C++ library too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines.build_plan import plan_build
from dycoke_trt.engines.llm_engine import build_llm_engine
from dycoke_trt.engines.model import model_of_bundle
from dycoke_trt.engines.plugin_build import build_plugin
from dycoke_trt.engines.plugin_nodes import ROPE, SCORE, SELECT
from dycoke_trt.engines.target_gpus import find_target_gpu
from dycoke_trt.export.checkpoint import open_checkpoint
from dycoke_trt.export.llm import export_llm
from dycoke_trt.runtime.trtllm.plugin import PLUGIN_ABI
from dycoke_trt.tests.engines.network.attention import INPUTS, LEARNED_ABSOLUTE, ROPE_GPT_NEOX
from dycoke_trt.tests.engines.network.recording import RecordedLayer, Recording
from dycoke_trt.tests.engines.plugin.test_plugin import INCLUDE, PLAIN, compile_cpp
from dycoke_trt.tests.support import demo_bundle

SOURCE = os.environ.get("TRTLLM_SOURCE_DIR", "")
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
INSIDE = Path(__file__).parent / "network" / "inside"
BLOCK = 8
OFF = DyCokeConfig(l=3, p=0.0)
FLOAT, BF16 = 0, 7  # of TensorRT's DataType
# Images for one rank of one, and for one of two; with the names that plugin/inside expects.
IMAGES = """
import sys
from pathlib import Path
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.kernels.aot import write_images
from dycoke_trt.kernels.images import KernelShape, plugin_variants
for name, heads, dtype, ranks in (
    ("one", (4, 2), "float32", 1), ("two", (2, 1), "float32", 2), ("half", (2, 1), "bfloat16", 2)
):
    shape = KernelShape(*heads, 16, Dtype(dtype), ranks)
    write_images(Path(sys.argv[1]) / name, shape, plugin_variants(shape, (8,)), ["sm_90"])
"""
TRTLLM_BUILD = f"""#!{sys.executable}
from dycoke_trt.tests.engines.network.record import main
main()
"""
# What the model class loads before it defines a network; recording needs no plugin.
LIBRARY = f"""
__attribute__((used)) char const kMark[] = "dycoke-plugin abi={PLUGIN_ABI} tensorrt=10;";
extern "C" bool initDycokePlugins(void*) {{ return true; }}
"""


def release() -> str:
    """Of the files in TRTLLM_SOURCE_DIR."""
    if not SOURCE:
        return "no-sources"
    text = (Path(SOURCE) / "tensorrt_llm" / "version.py").read_text()
    found = re.search(r'^__version__ = "(.*)"', text, re.MULTILINE)
    assert found, "tensorrt_llm/version.py names no version"
    return found[1]


RELEASE = release()
pytestmark = pytest.mark.skipif(not SOURCE, reason="needs TRTLLM_SOURCE_DIR")
Build = Callable[..., list[Recording]]


def name_of(config: DyCokeConfig, tp: int = 1) -> str:
    """Of a bundle whose tokens are compared by network/inside."""
    order = "-order" if config.order == "importance" else ""
    return f"l{config.l}_p{config.p}{order}" + ("" if tp == 1 else f"-tp{tp}")


@pytest.fixture(scope="module", params=[RELEASE])  # names of tests say it
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images, a trtllm-build on PATH, and the tiny Qwen2 as a checkpoint."""
    folder = tmp_path_factory.mktemp("network")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", IMAGES, str(folder)], env=environment, check=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "trtllm-build").write_text(TRTLLM_BUILD)
    (folder / "bin" / "trtllm-build").chmod(0o755)
    (folder / "init.cpp").write_text(LIBRARY)
    command = ["g++", "-shared", "-fPIC", str(folder / "init.cpp"), "-o", str(folder / "init.so")]
    subprocess.run(command, check=True)
    (folder / "source").mkdir()
    for kind in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / f"decode_A_{kind}", folder / "source" / kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
        yield folder


@pytest.fixture(scope="module")
def build(work: Path) -> Build:
    """A function (name, config, ...) -> recorded networks of all ranks, built as a bundle is.

    A name is built once: bundles lie in `work` under their names.
    """
    demo = demo_bundle(DyCokeConfig())
    shipped = read_manifest(demo)
    plan = plan_build(model_of_bundle(demo), find_target_gpu("h100"))
    small = {
        "tokens_per_block": BLOCK, "max_batch": 4, "max_input_len": 96, "max_seq_len": 128,
        "max_num_tokens": 128, "max_table_rows": 256,
    }  # fmt: skip

    def made(
        name: str, config: DyCokeConfig, dtype: Dtype = Dtype.FP32, tp: int = 1, **limits: int
    ) -> list[Recording]:
        bundle = work / name
        engine = bundle / "engine"
        files = [engine / f"rank{rank}.engine" for rank in range(tp)]
        if bundle.is_dir():
            return [Recording.from_bytes(file.read_bytes()) for file in files]
        bundle.mkdir()
        export_llm(open_checkpoint(work / "source"), bundle / "llm", config, dtype, tp)
        images = "half" if dtype is Dtype.BF16 else ("one", "two")[tp - 1]
        (bundle / "kernels").symlink_to(work / images)
        llm = {"dtype": dtype, "tp": tp}
        manifest = shipped.model_copy(
            update={"llm": shipped.llm.model_copy(update=llm), "dycoke": config.to_dict()}
        )
        chosen = replace(plan, tp=tp, **(small | limits))
        log = bundle / "build.log"
        build_llm_engine(bundle, manifest, chosen, engine, bundle / "cache", work / "init.so", log)
        return [Recording.from_bytes(file.read_bytes()) for file in files]

    return made


@pytest.fixture(scope="module")
def stock(build: Build) -> Recording:
    """p = 0, so trtllm-build is not told of our class."""
    (network,) = build(name_of(OFF), OFF)
    return network


def test_the_release_is_that_of_the_files(stock: Recording) -> None:
    assert stock.release == RELEASE


def test_without_pruning_our_class_defines_the_stock_network(work: Path, stock: Recording) -> None:
    """Layer for layer: kinds, wiring, weights and fields; the class named as --p 0 does not."""
    off = work / name_of(OFF)
    log = (off / "build.log").read_text()
    assert "DycokeQwen2" not in log
    command = [
        "trtllm-build", "--checkpoint_dir", str(off / "llm"), "--max_batch_size", "4",
        "--max_input_len", "96", "--max_seq_len", "128", "--max_num_tokens", "128",
        "--max_beam_width", "1", "--max_multimodal_len", "256", "--kv_cache_type", "paged",
        "--tokens_per_block", str(BLOCK), "--gpt_attention_plugin", "float32",
        "--gemm_plugin", "float32", "--remove_input_padding", "enable", "--context_fmha", "enable",
        "--use_paged_context_fmha", "enable", "--reduce_fusion", "disable",
        "--output_timing_cache", str(off / "cache"), "--output_dir", str(work / "ours"),
        "--model_cls_file", str(work / "hook.py"), "--model_cls_name", "DycokeQwen2ForCausalLM",
    ]  # fmt: skip
    hook = "from dycoke_trt.engines.llm_model import DycokeQwen2ForCausalLM\n"
    (work / "hook.py").write_text(hook)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    ours = Recording.from_bytes((work / "ours" / "rank0.engine").read_bytes())
    assert any("DycokeQwen2ForCausalLM" in layer.name for layer in ours.layers)
    assert [layer.digest() for layer in ours.layers] == [layer.digest() for layer in stock.layers]
    assert (ours.inputs, ours.outputs) == (stock.inputs, stock.outputs)


def attention_inputs(layer: RecordedLayer) -> dict[str, int | None]:
    return dict(zip(INPUTS, layer.inputs, strict=False))


@pytest.mark.parametrize("order", ["raster", "importance"])
@pytest.mark.parametrize("l", [0, 3])
def test_pruning_adds_its_nodes_and_changes_nothing_else(
    build: Build, stock: Recording, l: int, order: str
) -> None:
    config = DyCokeConfig.from_dict({"l": l, "p": 0.7, "order": order})
    (network,) = build(name_of(config), config)
    kinds = Counter(layer.kind for layer in network.layers)
    layers = len(stock.plugins("GPTAttention"))
    added = {
        "plugin_v3:" + SCORE: 1, "plugin_v3:" + SELECT: 1, "plugin_v3:" + ROPE: layers - l,
        "constant": 1,  # how many of n blocks are kept
    }  # fmt: skip
    assert kinds == Counter(layer.kind for layer in stock.layers) + Counter(added)

    assert network.inputs == stock.inputs  # a runtime knows no others
    (score,), (select,) = network.plugins(SCORE), network.plugins(SELECT)
    assert score.values["layer"].tolist() == [max(l - 1, 0)]
    attentions = network.plugins("GPTAttention")
    expected_inputs = [*score.outputs]
    if order == "importance":  # K and V move behind the layer that reads the whole table
        first = attentions[0].inputs[0]
        assert first is not None
        behind = attentions[l - 1].outputs[0] if l > 0 else network.producer(first).inputs[0]
        expected_inputs.append(behind)
    assert select.inputs[8:] == expected_inputs
    table, lengths = select.outputs
    for index, layer in enumerate(attentions):
        given = attention_inputs(layer)
        pruned = index >= l
        expected = {"kv_cache_block_offsets": table, "sequence_length": lengths} if pruned else {}
        for name in INPUTS[1:]:
            assert given[name] == expected.get(name, network.inputs[name]), (index, name)
        kind = LEARNED_ABSOLUTE if pruned else ROPE_GPT_NEOX
        assert layer.values["position_embedding_type"] == kind
        assert (layer.values["rotary_embedding_dim"] == 0) == pruned
        qkv = layer.inputs[0]
        assert qkv is not None
        assert (network.producer(qkv).plugin == ROPE) == pruned


def test_scores_are_summed_in_fp32(build: Build) -> None:
    """Activations of a bfloat16 model are summed over ranks in bfloat16."""
    networks = build("bf16", DyCokeConfig(l=2, p=0.5), Dtype.BF16, tp=2)
    for network in networks:
        (score,), (select,) = network.plugins(SCORE), network.plugins(SELECT)
        sums = network.plugins("AllReduce")
        (ours,) = [layer for layer in sums if layer.inputs[0] == score.outputs[0]]
        assert ours.outputs[0] == select.inputs[-1]
        assert ours.values["strategy"] == 0  # NCCL
        types = {layer.name: int(layer.values["type_id"].item()) for layer in sums}
        assert types.pop(ours.name) == FLOAT
        assert set(types.values()) == {BF16}
        assert len(types) == 2 * len(network.plugins("GPTAttention"))


def test_refusals_come_through_trtllm_build(build: Build) -> None:
    with pytest.raises(DyCokeError, match="--max_multimodal_len is 0") as caught:
        build("refused", DyCokeConfig(), max_table_rows=0)
    assert "\n" not in str(caught.value)


def test_tokens_equal_the_native_backends(build: Build, work: Path) -> None:
    pruned = [
        (DyCokeConfig(l=l, p=p), tp)
        for l, p, tp in ((0, 0.7, 1), (1, 0.5, 1), (3, 0.7, 1), (2, 0.7, 2))
    ]
    order = {"memory": 0.6, "order": "importance"}
    pruned += [
        (DyCokeConfig(l=l, p=0.7).with_changes(**order), tp) for l, tp in ((0, 1), (3, 1), (2, 2))
    ]
    cases = [*pruned, (OFF, 1)]
    for config, tp in cases:
        build(name_of(config, tp), config, tp=tp)
    (work / "whole").symlink_to(work / name_of(OFF))  # the model on one rank
    environment = os.environ | {
        "DYCOKE_TEST_NETWORK": str(work),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    libraries = ["l3_p0.7", "l3_p0.7-order"] if INCLUDE else []
    if INCLUDE:
        for name in libraries:
            (work / f"{name}-library").symlink_to(work / name)
        build_plugin(work, Path(INCLUDE), flags=PLAIN)
        compile_cpp("fake_cuda.cpp", work / "libcuda.so.1", "-Wl,-soname,libcuda.so.1", *PLAIN)
        compile_cpp("harness.cpp", work / "libharness.so", *PLAIN)
        environment["DYCOKE_TEST_PLUGIN"] = str(work)
        environment["DYCOKE_COUNTERS_FILE"] = str(work / "counters.json")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(INSIDE)], env=environment, capture_output=True, text=True,
        cwd=INSIDE.parents[3], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert f"{len(cases) + len(libraries)} passed" in done.stdout
