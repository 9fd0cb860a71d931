"""Building engines, as far as it goes without TensorRT: commands, checks, records, reasons."""

from __future__ import annotations

from pathlib import Path

import pytest
from dycoke_trt.bundle.manifest import Manifest, read_manifest
from dycoke_trt.bundle.record import Installed, read_record, write_record
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines import tensorrt as building
from dycoke_trt.engines.build_plan import BuildPlan, plan_build
from dycoke_trt.engines.llm_engine import build_command, build_environment, check_kernels, explain
from dycoke_trt.engines.model import model_of_bundle
from dycoke_trt.engines.target_gpus import find_target_gpu
from dycoke_trt.runtime.nvidia_smi import VisibleGpu
from dycoke_trt.runtime.trtllm.plugin import PLUGIN_ABI
from dycoke_trt.tests.support import assert_one_line, demo_bundle, dycoke


@pytest.fixture(scope="module")
def bundle() -> Path:
    return demo_bundle(DyCokeConfig())


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    found = read_manifest(bundle)
    return found.model_copy(update={"llm": found.llm.model_copy(update={"dtype": Dtype.BF16})})


@pytest.fixture
def plan(bundle: Path) -> BuildPlan:
    return plan_build(model_of_bundle(bundle), find_target_gpu("h100"))


def test_without_tensorrt_the_command_names_the_container(bundle: Path) -> None:
    done = dycoke("build", bundle, "--target", "h100")
    assert_one_line(done, "tensorrt", "not installed", "26.07-trtllm-python-py3", "--dry-run")


def options(command: list[str]) -> dict[str, str]:
    names, values = command[1::2], command[2::2]
    assert all(name.startswith("--") for name in names)
    return dict(zip((name[2:] for name in names), values, strict=True))


def test_the_command_says_everything(bundle: Path, manifest: Manifest, plan: BuildPlan) -> None:
    command = build_command(bundle / "llm", Path("out"), manifest, plan, Path("c"), Path("hook.py"))
    given = options(command)
    assert command[0] == "trtllm-build"
    assert given["max_beam_width"] == "1"
    assert given["kv_cache_type"] == "paged"
    assert given["tokens_per_block"] == "32"
    assert int(given["max_multimodal_len"]) == plan.max_batch * manifest.visual_tokens(32)
    assert (given["model_cls_file"], given["model_cls_name"]) == (
        "hook.py", "DycokeQwen2ForCausalLM"
    )  # fmt: skip
    assert "max_draft_len" not in given


def test_without_pruning_the_network_is_the_stock_one(
    bundle: Path, manifest: Manifest, plan: BuildPlan
) -> None:
    off = manifest.model_copy(update={"dycoke": DyCokeConfig(p=0.0).to_dict()})
    given = options(build_command(bundle / "llm", Path("o"), off, plan, Path("c"), Path("h")))
    assert not {"model_cls_file", "model_cls_name"} & set(given)
    check_kernels(bundle, off, plan)


def test_the_model_class_finds_kernels_and_library(bundle: Path) -> None:
    environment = build_environment(bundle, Path("/lib.so"), "v2")
    assert environment["DYCOKE_PLUGIN_INTERFACE"] == "v2"
    assert environment["DYCOKE_KERNELS"] == str(bundle.resolve() / "kernels")
    assert environment["DYCOKE_PLUGIN_LIBRARY"] == "/lib.so"


def test_what_cannot_be_built(
    bundle: Path, manifest: Manifest, plan: BuildPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gpus(*found: VisibleGpu) -> None:
        monkeypatch.setattr(building, "visible_gpus", lambda: list(found))

    with pytest.raises(DyCokeError, match=r"is float32.*--dtype bfloat16"):
        building.check_buildable(bundle, read_manifest(bundle), plan)
    tokens = manifest.model_copy(update={"dycoke": manifest.dycoke | {"granularity": "token"}})
    with pytest.raises(DyCokeError, match=r"granularity=token does not go.*allowed: block"):
        building.check_buildable(bundle, tokens, plan)
    gpus()
    with pytest.raises(DyCokeError, match="nvidia-smi lists no GPU"):
        building.check_buildable(bundle, manifest, plan)
    gpus(VisibleGpu("NVIDIA L4", 89, 24e9, "580"))
    with pytest.raises(DyCokeError, match=r"h100 is sm_90, this machine's NVIDIA L4 is sm_89"):
        building.check_buildable(bundle, manifest, plan)
    gpus(VisibleGpu("NVIDIA H100", 90, 80e9, "580"))
    with pytest.raises(DyCokeError, match="no kernel images for sm_90 and 32 tokens per block"):
        building.check_buildable(bundle, manifest, plan)


def test_a_record_describes_what_was_built(
    bundle: Path, manifest: Manifest, plan: BuildPlan, tmp_path: Path
) -> None:
    folder = tmp_path / "h100"
    (folder / "llm").mkdir(parents=True)
    (folder / "llm" / "rank0.engine").write_bytes(b"engine")
    record = building.engine_record(folder, manifest, plan, "10.14.1.48", "1.2.1", True)
    write_record(folder, record)
    here = Installed(sm=90, tensorrt="10.14.1.48", tensorrt_llm="1.2.1", plugin_abi=PLUGIN_ABI)
    assert read_record(folder, manifest, bundle, installed=here, hashes=True) == record
    assert record.options["max_num_tokens"] == plan.max_num_tokens
    assert "videos" not in record.options
    assert record.options["plugin_interface"] == "v3"
    assert record.options["profile"] == "balanced"


def test_reasons_of_failed_builds() -> None:
    ours = "Traceback\ndycoke_trt.core.errors.DyCokeError: layer 2 came first\n[TRT-LLM] bye"
    assert explain(ours) == "layer 2 came first"
    assert explain("a\n[TRT] [E] no tactic\nmore") == "[TRT] [E] no tactic"
    assert explain("") == "it printed nothing"


def test_verify_looks_at_engines_too(bundle: Path) -> None:
    done = dycoke("verify", bundle, "--target", "cpu")
    assert done.returncode == 0, done.stderr
    assert "engine files" in done.stdout
    assert_one_line(dycoke("verify", bundle, "--target", "h100"), "nothing was built there")
