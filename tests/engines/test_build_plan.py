"""Targets and plans: exact weights and KV, capacities from memory, what is refused and how."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from dycoke_trt.bundle.llm_layout import rank_shapes
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines.build_plan import plan_build, rank_weights, state_bytes_per_block
from dycoke_trt.engines.model import Model, model_of_bundle, model_of_preset
from dycoke_trt.engines.target_gpus import GPU_NAMES, find_target_gpu
from dycoke_trt.runtime.nvidia_smi import VisibleGpu, parse_gpu
from dycoke_trt.tests.support import assert_one_line, demo_bundle, dycoke

L4 = VisibleGpu("NVIDIA L4", 89, 24_152_899_584, "580.65.06")


def model(name: str = "llava-ov-7b", tp: int = 1, frames: int = 64, p: float = 0.7) -> Model:
    return model_of_preset(name, tp=tp, max_frames=frames, config=DyCokeConfig(p=p))


@pytest.mark.parametrize("name", ["llava-ov-0.5b", "llava-ov-7b", "llava-ov-72b"])
@pytest.mark.parametrize("tp", [1, 2])
def test_weights_of_a_rank_are_those_of_its_file(name: str, tp: int) -> None:
    from math import prod

    dims = model(name).llm
    shapes = rank_shapes(dims, tp)
    per_rank = rank_weights(dims, tp)
    assert per_rank == sum(prod(shape) for shape in shapes.values())
    # From all weights, each once: what is whole on every rank, copied heads, the head and its pad.
    embedding, kv_row = dims.vocab * dims.hidden, dims.head_dim * (dims.hidden + 1)
    whole = embedding + (2 * dims.layers + 1) * dims.hidden
    copies = dims.layers * 2 * kv_row * max(0, tp - dims.kv_heads)
    head = embedding if dims.tied_embeddings else 0
    padding = -dims.vocab % tp * dims.hidden
    assert tp * per_rank == dims.weights + head + (tp - 1) * whole + copies + padding


def test_72b_on_two_h200() -> None:
    plan = plan_build(model("llava-ov-72b", tp=2), find_target_gpu("h200"))
    assert plan.weights_total == pytest.approx(145.41e9, rel=1e-3)
    assert plan.weights_per_rank == pytest.approx(73.95e9, rel=1e-3)
    assert plan.weights_per_rank_split == pytest.approx(72.70e9, rel=1e-3)
    assert plan.kv_bytes_per_token == 163_840


@pytest.mark.parametrize("target", GPU_NAMES)
@pytest.mark.parametrize("name", ["llava-ov-0.5b", "llava-ov-7b"])
def test_every_default_fits(name: str, target: str) -> None:
    found = find_target_gpu(target)
    plan = plan_build(model(name), found)
    used = plan.weights_per_rank + plan.vision_weights + plan.activations + plan.reserve
    used += plan.tables
    assert used + plan.kv_bytes + plan.state_bytes <= found.memory
    assert plan.kv_tokens >= plan.max_batch * plan.max_seq_len
    assert plan.state_capacity >= plan.kv_blocks  # no block is ever without state
    assert plan.state_bytes < 0.002 * found.memory


def test_capacity_follows_memory_and_block_size() -> None:
    small = plan_build(model("llava-ov-0.5b"), find_target_gpu("h200"), tokens_per_block=16)
    assert 595_000 < small.state_capacity < 725_000
    large = plan_build(model("llava-ov-0.5b"), find_target_gpu("h200"), tokens_per_block=64)
    assert large.state_capacity == pytest.approx(small.state_capacity / 4, rel=1e-3)
    assert state_bytes_per_block(32, averages=False) == 32 * 5 + 1 + 16
    assert state_bytes_per_block(32, averages=True) == 32 * 9 + 1 + 16
    off = plan_build(model(p=0.0), find_target_gpu("l4"))
    assert (off.state_capacity, off.state_bytes) == (0, 0)


def test_prompt_tables_are_counted_three_times() -> None:
    """The engine's buffer, each request's own, and Triton's pool on its way."""
    plan = plan_build(model(frames=32), find_target_gpu("h200"), max_batch=64)
    table = 2961 * 3584 * 2
    assert plan.tables == 3 * 64 * table
    assert plan.max_table_rows == 64 * 2961
    fewer = plan_build(model(frames=32), find_target_gpu("h200"), max_batch=1)
    assert plan.activations - fewer.activations == 63 * 3 * 4 * model().llm.vocab  # logits alone
    assert fewer.kv_bytes - plan.kv_bytes == pytest.approx(0.9 * 63 * 3 * table, rel=0.1)


@pytest.mark.parametrize(
    ("name", "tp", "latency", "balanced"),
    [("llava-ov-0.5b", 1, 1, 7), ("llava-ov-7b", 1, 4, 31), ("llava-ov-72b", 2, 12, 64)],
)
def test_profiles_bound_what_tables_cost(name: str, tp: int, latency: int, balanced: int) -> None:
    chosen, target = model(name, tp=tp, frames=32), find_target_gpu("b200")
    plans = {
        p: plan_build(chosen, target, profile=p) for p in ("latency", "balanced", "throughput")
    }
    assert {p: plan.max_batch for p, plan in plans.items()} == {
        "latency": latency, "balanced": balanced, "throughput": 64
    }  # fmt: skip
    assert all(plan.profile == name for name, plan in plans.items())
    default, given = plan_build(chosen, target), plan_build(chosen, target, max_batch=3)
    assert (default.max_batch, default.profile) == (balanced, "balanced")
    assert (given.max_batch, given.profile) == (3, None)
    # One more sequence would cost a sequence that runs alone more than the profile's share.
    read = (rank_weights(chosen.llm, tp) - chosen.llm.vocab * chosen.llm.hidden) * 2
    table = chosen.visual_tokens(32) * chosen.llm.hidden * 2
    if latency > 1:
        assert (latency + 2) * table <= 0.01 * read < (latency + 3) * table


def test_compression_makes_room_for_videos() -> None:
    videos = plan_build(model(), find_target_gpu("h100")).videos
    at_32 = {v.k: v for v in videos if v.frames == 32}
    assert (at_32[0.0].visual_tokens, at_32[0.7].visual_tokens) == (6273, 2961)
    assert at_32[0.7].concurrent >= 2 * at_32[0.0].concurrent > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "fast"}, "--profile 'fast' is not allowed; allowed: latency, balanced"),
        ({"profile": "latency", "max_batch": 2}, "sets what --max-batch 2 does; give one"),
        ({"tokens_per_block": 8}, "--tokens-per-block 8 is not allowed; allowed: 16, 32, 64, 128"),
        ({"kv_fraction": 1.0}, "--kv-fraction 1.0 is not allowed"),
        ({"max_batch": 0}, "--max-batch 0 is not allowed"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(DyCokeError, match=message):
        plan_build(model(), find_target_gpu("h100"), **options)


def test_what_does_not_fit_is_refused_with_both_sizes() -> None:
    with pytest.raises(DyCokeError, match=r"needs 1\d\d.* GB per GPU at TP=1, it has 80.0 GB"):
        plan_build(model("llava-ov-72b"), find_target_gpu("h100"))


def test_this_gpu_is_the_one_of_this_machine() -> None:
    found = find_target_gpu("this-gpu", [L4, L4])
    assert (found.name, found.sm, found.memory) == ("this-gpu", 89, L4.memory)
    assert found.gpu is not None
    assert found.gpu.name == "l4"
    for name, key in (("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100")):
        gpu = find_target_gpu("this-gpu", [replace(L4, name=name)]).gpu
        assert gpu is not None
        assert gpu.name == key
    assert find_target_gpu("this-gpu", [replace(L4, name="NVIDIA L40")]).gpu is None
    for gpus, message in (
        ([], "nvidia-smi lists no GPU"),
        ([L4, replace(L4, name="NVIDIA H200", sm=90)], r"sm_89\) and NVIDIA H200 \(sm_90\)"),
        ([replace(L4, name="Tesla T4", sm=75)], "Tesla T4 is sm_75"),
    ):
        with pytest.raises(DyCokeError, match=message):
            find_target_gpu("this-gpu", gpus)


def test_lines_of_nvidia_smi() -> None:
    assert parse_gpu("NVIDIA L4, 8.9, 23034, 580.65.06") == L4
    assert parse_gpu("Failed to initialize NVML: Driver/library version mismatch") is None


def test_dry_run_of_a_bundle_and_of_a_preset() -> None:
    bundle = demo_bundle(DyCokeConfig())
    done = dycoke("build", bundle, "--target", "l4", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["weights_per_rank"] == rank_weights(model_of_bundle(bundle).llm, 1) * 4
    assert (plan["sm"], plan["floors"]) == (89, [])
    done = dycoke("build", "--model", "llava-ov-7b", "--target", "h100", "--dry-run")
    assert done.returncode == 0, done.stderr
    for text in ("15.23 GB", "57,344 B", "decode step", "capacity", "prompt tables", "v3"):
        assert text in done.stdout


def test_what_the_command_line_refuses() -> None:
    bundle = demo_bundle(DyCokeConfig())
    for args, message in (
        (("build", bundle, "--target", "h300"), "unknown target 'h300'; allowed: cpu, cuda, a100"),
        (("build", bundle), "--target is missing"),
        (("build", "--target", "h100"), "give BUNDLE"),
        (("build", "--model", "llava-ov-7b", "--target", "h100"), "--model is for --dry-run"),
        (("build", bundle, "--target", "cpu", "--dry-run"), "--target cpu, which compiles nothing"),
        (("build", bundle, "--target", "l4", "--kv-tokens", "64"), "l4; use --kv-fraction"),
        (("build", bundle, "--target", "cpu", "--profile", "latency"), "--profile latency has no"),
        (("build", bundle, "--target", "cuda", "--plugin", "x.so"), "--plugin x.so has no effect"),
        (
            ("build", bundle, "--target", "l4", "--dry-run", "--plugin-interface", "v4"),
            "--plugin-interface 'v4' is not allowed; allowed: v3, v2",
        ),
    ):
        assert_one_line(dycoke(*args), message)
