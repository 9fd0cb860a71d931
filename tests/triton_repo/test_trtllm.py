"""The repository and the server's command for TensorRT engines: texts alone, nothing runs here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from dycoke_trt.bundle.manifest import Manifest, read_manifest
from dycoke_trt.bundle.record import EngineRecord, write_record
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines import tensorrt as building
from dycoke_trt.engines.build_plan import plan_build
from dycoke_trt.engines.model import model_of_bundle
from dycoke_trt.engines.target_gpus import find_target_gpu
from dycoke_trt.runtime.limits import RequestLimits
from dycoke_trt.runtime.trtllm.plugin import PLUGIN_ABI
from dycoke_trt.tests.support import assert_one_line, demo_bundle, dycoke
from dycoke_trt.triton_repo import trtllm_launch
from dycoke_trt.triton_repo.repository import write_repository
from dycoke_trt.triton_repo.trtllm import (
    CPP_BACKEND,
    EXECUTOR,
    UNGUARDED,
    llm_config,
    llm_parameters,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle with engine files that hold nothing."""
    bundle = tmp_path_factory.mktemp("trtllm") / "bundle"
    shutil.copytree(demo_bundle(DyCokeConfig()), bundle)
    engines = bundle / "engines" / "h100"
    (engines / "llm").mkdir(parents=True)
    for name in ("llm/rank0.engine", "vision_ttm.plan", "libdycoke_plugins.so"):
        (engines / name).write_bytes(b"engine")
    plan = plan_build(model_of_bundle(bundle), find_target_gpu("h100"))
    record = building.engine_record(
        engines, read_manifest(bundle), plan, "10.14.1", "1.2.1", pruned=True
    )
    write_record(engines, record)
    return bundle


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture
def record(bundle: Path) -> EngineRecord:
    path = bundle / "engines" / "h100" / "record.json"
    return EngineRecord.model_validate_json(path.read_text())


def parameters(text: str) -> dict[str, str]:
    found = re.findall(r'parameters \{ key: "(\S+)" value \{ string_value: "([^"]*)" \} \}', text)
    return dict(found)


def test_repository(bundle: Path, record: EngineRecord, tmp_path: Path) -> None:
    folder = write_repository(
        bundle, tmp_path / "models", bundle_path=Path("/bundle"), build="h100",
        triton_version="2.71.0",
    )  # fmt: skip
    texts = {p.parent.name: p.read_text() for p in folder.glob("*/config.pbtxt")}
    assert len(texts) == 6

    llm = texts["tensorrt_llm"]
    assert 'backend: "tensorrtllm"' in llm
    assert "model_transaction_policy { decoupled: true }" in llm
    assert f"max_batch_size: {record.max_batch}\n" in llm
    given = parameters(llm)
    assert given["gpt_model_type"] == "inflight_fused_batching"
    assert given["gpt_model_path"] == "/bundle/engines/h100/llm"
    assert given["batch_scheduler_policy"] == "guaranteed_no_evict"
    assert given["enable_kv_cache_reuse"] == "false"
    assert given["enable_chunked_context"] == "true"
    assert given["max_beam_width"] == "1"
    assert given["max_tokens_in_paged_kv_cache"] == str(record.kv_tokens)
    assert "max_attention_window_size" not in given
    assert 'name: "input_lengths" data_type: TYPE_INT32 dims: [ 1 ] reshape: { shape: [ ] }' in llm
    assert 'dims: [ -1 ] optional: true allow_ragged_batch: true' in llm  # fmt: skip
    assert "is_final" not in llm
    assert list((folder / "tensorrt_llm" / "1").iterdir()) == []

    # NVIDIA's image has no backend `tensorrt`: our model in Python runs the plan.
    vision = texts["vision_ttm"]
    assert 'backend: "python"' in vision
    given = parameters(vision)
    assert (given["vision"], given["build"], given["bundle"]) == ("tensorrt", "h100", "/bundle")
    assert given["embeds_memory"] == "gpu"  # where the C++ backend of the LLM takes them
    assert [path.name for path in (folder / "vision_ttm" / "1").iterdir()] == ["model.py"]

    for name in ("dycoke", "postprocessing", "preprocessing", "dycoke_bls"):
        assert "is_first" not in texts[name]
        assert "is_final" not in texts[name]
    assert 'backend: "python"' in texts["preprocessing"]
    assert parameters(texts["postprocessing"])["publish_counters"] == "true"
    assert parameters(texts["dycoke_bls"])["errors_as_output"] == "false"
    assert "errors_as_output" not in llm
    assert "max_inflight_requests" in texts["dycoke"]


def test_a_server_with_the_backend_runs_the_plan_itself(bundle: Path, tmp_path: Path) -> None:
    folder = write_repository(
        bundle, tmp_path / "models", bundle_path=Path("/bundle"), build="h100", plan_backend=True
    )
    vision = (folder / "vision_ttm" / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"' in vision
    assert 'default_model_filename: "vision_ttm.plan"' in vision
    assert 'kind: KIND_GPU gpus: [ 0 ] profile: [ "0", "1" ]' in vision
    (link,) = (folder / "vision_ttm" / "1").iterdir()
    assert str(link.readlink()) == "/bundle/engines/h100/vision_ttm.plan"


def test_python_models_pass_embeddings_on_in_the_cpus_memory(bundle: Path, tmp_path: Path) -> None:
    folder = write_repository(bundle, tmp_path / "models", build="h100", llm=EXECUTOR)
    given = parameters((folder / "vision_ttm" / "config.pbtxt").read_text())
    assert (given["vision"], given["embeds_memory"]) == ("tensorrt", "cpu")


def test_the_native_backend_has_no_plan(tmp_path: Path) -> None:
    with pytest.raises(
        DyCokeError, match="--vision tensorrt does not go with --target cpu; allowed: native"
    ):
        write_repository(demo_bundle(DyCokeConfig()), tmp_path / "m", vision="tensorrt")


# What NVIDIA's backend reads outside of any `try` (triton_repo/trtllm.py names its sources),
# and what must be said because its default is not ours.
READ_UNGUARDED = {
    "gpt_model_type", "tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend"
}  # fmt: skip
NOT_THE_DEFAULT = {
    "gpt_model_path", "enable_kv_cache_reuse", "enable_chunked_context", "exclude_input_in_output",
    "max_tokens_in_paged_kv_cache",
}  # fmt: skip


@pytest.mark.parametrize("p", [0.0, 0.7])
def test_every_parameter_that_the_backend_needs_is_written(
    manifest: Manifest, record: EngineRecord, p: float
) -> None:
    changed = manifest.model_copy(update={"dycoke": DyCokeConfig(p=p).to_dict()})
    given = parameters(llm_config(changed, record, "/e", max_queue=64).text())
    assert set(given) >= READ_UNGUARDED | NOT_THE_DEFAULT
    assert set(UNGUARDED) == READ_UNGUARDED
    # Guided decoding is off where one of these is empty; none may be a template's ${...}.
    assert not given["xgrammar_tokenizer_info_path"]
    assert not given["guided_decoding_backend"]
    assert not any("${" in value for value in given.values())
    # Read by std::stoi, std::stof and a list of words: anything else would throw.
    assert given["gpt_model_type"] in ("V1", "v1", "inflight_batching", "inflight_fused_batching")
    for name in (
        "max_beam_width", "max_tokens_in_paged_kv_cache", "cancellation_check_period_ms",
        "recv_poll_period_ms",  # at 0 two threads of an orchestrator never pause
    ):  # fmt: skip
        assert int(given[name]) > 0
    assert 0 < float(given["kv_cache_free_gpu_mem_fraction"]) < 1
    for name in ("enable_kv_cache_reuse", "enable_chunked_context", "exclude_input_in_output"):
        assert given[name] in ("true", "false")


def test_the_line_of_the_cpp_backend_is_bounded(bundle: Path, tmp_path: Path) -> None:
    """Its executor refuses by max_queue_size, which the server's batcher reads too."""
    folders = (
        write_repository(bundle, tmp_path / "default", build="h100"),
        write_repository(
            bundle, tmp_path / "given", build="h100", requests=RequestLimits(max_queue=7)
        ),
    )
    for folder, most in zip(folders, (RequestLimits.max_queue, 7), strict=True):
        llm = (folder / "tensorrt_llm" / "config.pbtxt").read_text()
        (line,) = re.findall(r"^dynamic_batching .*$", llm, re.MULTILINE)
        policy = f"default_queue_policy {{ max_queue_size: {most} }}"
        assert line == f"dynamic_batching {{ max_queue_delay_microseconds: 0 {policy} }}"
        assert "model_transaction_policy { decoupled: true }" in llm


def test_parameters_pass_the_refusals_for_every_config(
    manifest: Manifest, record: EngineRecord
) -> None:
    for p in (0.0, 0.7):
        changed = manifest.model_copy(update={"dycoke": DyCokeConfig(p=p).to_dict()})
        assert llm_parameters(changed, record, "/e")["max_beam_width"] == "1"


def test_environment_preloads_the_plugins(
    bundle: Path, record: EngineRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = bundle / "engines" / "h100"
    library = str(engines / "libdycoke_plugins.so")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    found = trtllm_launch.server_environment(engines, record, "/tmp/counters.%p.json")
    assert found == {
        "LD_PRELOAD": library, "DYCOKE_AUTOREGISTER": "1",
        "DYCOKE_COUNTERS_FILE": "/tmp/counters.%p.json", "DYCOKE_PLUGIN_LIBRARY": library,
    }  # fmt: skip
    monkeypatch.setenv("LD_PRELOAD", "/lib/other.so")
    both = trtllm_launch.server_environment(engines, record)
    assert both["LD_PRELOAD"] == f"{library}:/lib/other.so"
    stock = record.model_copy(update={"files": {}})
    assert trtllm_launch.server_environment(engines, stock) == {}


def test_a_given_library_is_preloaded_instead(
    bundle: Path, record: EngineRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    engines, given = bundle / "engines" / "h100", tmp_path / "given.so"
    given.write_bytes(f"\x7fELF dycoke-plugin abi={PLUGIN_ABI} tensorrt=10;".encode("latin-1"))
    found = trtllm_launch.server_environment(engines, record, plugin=given)
    assert found["LD_PRELOAD"] == found["DYCOKE_PLUGIN_LIBRARY"] == str(given.resolve())
    given.write_bytes(b"\x7fELF")
    with pytest.raises(DyCokeError, match="has plugin ABI None"):
        trtllm_launch.server_environment(engines, record, plugin=given)
    stock = record.model_copy(update={"files": {}})
    with pytest.raises(DyCokeError, match=r"--plugin .* has no effect: no plugins with --p 0"):
        trtllm_launch.server_environment(engines, stock, plugin=given)


def test_memory_for_embeddings_and_frames(manifest: Manifest, record: EngineRecord) -> None:
    (option,) = trtllm_launch.server_options(manifest, record)
    name, _, size = option.rpartition(":")
    assert name == "--cuda-memory-pool-byte-size=0"
    assert int(size) >= record.max_batch * manifest.visual_tokens(32) * manifest.llm.hidden * 4
    assert int(size) % 2**20 == 0
    needed = trtllm_launch.shared_memory(manifest, record, CPP_BACKEND)
    assert trtllm_launch.shm_advice(manifest, record, CPP_BACKEND, needed) == ""
    advice = trtllm_launch.shm_advice(manifest, record, CPP_BACKEND, 64 * 2**20)
    assert "--shm-size=1g" in advice
    # Tables cross it too where the LLM step is a Python model.
    table = trtllm_launch.table_bytes(manifest)
    more = trtllm_launch.shared_memory(manifest, record, EXECUTOR)
    assert more - needed == record.max_batch * table > 0


def test_ranks_under_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["/bin/tritonserver", "--model-repository=/m", "--grpc-port=8001", "--log-verbose=1"]
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    made = " ".join(trtllm_launch.mpi_command(command, 2, "/env/bin:/bin"))
    first, second = made.split(" : ")
    rank = "-n 1 env PATH=/env/bin:/bin"
    assert first == f"/usr/bin/mpirun --allow-run-as-root {rank} {' '.join(command)}"
    assert second.startswith(f"{rank} /bin/tritonserver --model-repository=/m --log-verbose=1")
    assert second.endswith("--model-control-mode=explicit --load-model=tensorrt_llm")
    assert "--grpc-port" not in second
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(DyCokeError, match="TP=2 needs mpirun"):
        trtllm_launch.mpi_command(command, 2, "/env/bin:/bin")


def test_serve_refuses_a_plan_that_was_cut_short(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(bundle, broken)
    (broken / "engines" / "h100" / "vision_ttm.plan").write_bytes(b"eng")
    free = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    done = dycoke("serve", broken, "--target", "h100", *free)
    assert_one_line(done, "vision_ttm.plan has 3 bytes, record.json says 6", "dycoke build")
    assert_one_line(dycoke("repo", broken, "-o", tmp_path / "m", "--target", "h100"), "has 3 bytes")
