import json

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.cost.dims import preset
from dycoke_trt.cost.floors import (
    Workload,
    attended_visual_tokens,
    compare_floors,
    floors,
    prompt_table_traffic,
    prompt_tables,
)
from dycoke_trt.cost.gpus import GPUS, Gpu, gpu, gpu_of_product
from dycoke_trt.tests.support import dycoke

MODEL = preset("llava-ov-7b")
# The bandwidth and compute that the published floors of the field notes assume.
SUSTAINED = Gpu("h200 sustained", 90, 141e9, 4.3e12, 790e12, "assumed")


@pytest.mark.parametrize(
    ("batch", "full", "ttm", "pruned"),
    [(1, 3.37, 3.33, 3.31), (8, 3.97, 3.62, 3.43), (32, 6.02, 4.61, 3.85), (64, 8.75, 5.93, 4.41)],
)
def test_decode_floors_of_the_7b(batch: int, full: float, ttm: float, pruned: float) -> None:
    settings = compare_floors(MODEL, SUSTAINED, DyCokeConfig.paper(), Workload(batch=batch))
    got = [setting.time_per_token * 1e3 for setting in settings]
    assert got == pytest.approx([full, ttm, pruned], abs=0.006)


def test_time_to_first_token_of_the_7b() -> None:
    full, ttm, pruned = compare_floors(MODEL, SUSTAINED, DyCokeConfig.paper(), Workload())
    assert full.time_to_first_token * 1e3 == pytest.approx(142, abs=0.5)
    assert ttm.time_to_first_token * 1e3 == pytest.approx(79.4, abs=0.5)
    assert pruned.time_to_first_token == ttm.time_to_first_token
    assert [stage.stage for stage in full.stages] == ["vision", "ttm", "prefill", "decode step"]


def test_attended_tokens() -> None:
    config, workload = DyCokeConfig.paper(), Workload(tokens_per_block=64)
    assert attended_visual_tokens(2961, config, workload) == 977  # 14 of 45 blocks, and the edges
    token = config.with_changes(granularity="token")
    assert attended_visual_tokens(2961, token, workload) == 888
    assert attended_visual_tokens(2961, config.with_changes(p=0.0), workload) == 2961
    assert attended_visual_tokens(30, config, workload) == 30  # no whole block inside


def test_a_floor_is_the_larger_of_its_two_times() -> None:
    slow_memory = Gpu("", 0, 0, 1e9, 1e18, "")
    slow_compute = Gpu("", 0, 0, 1e18, 1e9, "")
    for device, bound in ((slow_memory, "bandwidth"), (slow_compute, "compute")):
        for stage in floors(MODEL, device, DyCokeConfig.paper(), Workload()).stages:
            assert stage.bound == bound
            by = stage.bytes / 1e9 if bound == "bandwidth" else stage.flops / 1e9
            assert stage.seconds == pytest.approx(by)


def test_two_gpus_halve_every_floor() -> None:
    one = floors(MODEL, SUSTAINED, DyCokeConfig.paper(), Workload())
    two = floors(MODEL, SUSTAINED, DyCokeConfig.paper(), Workload(gpus=2))
    for a, b in zip(one.stages, two.stages, strict=True):
        assert b.seconds == pytest.approx(a.seconds / 2)


def test_refusals() -> None:
    with pytest.raises(DyCokeError, match="batch=0"):
        Workload(batch=0)
    with pytest.raises(DyCokeError, match="span_start=65"):
        Workload(span_start=65)
    with pytest.raises(DyCokeError, match="28 layers"):
        compare_floors(MODEL, SUSTAINED, DyCokeConfig(l=28), Workload())
    with pytest.raises(DyCokeError, match=r"table: a100.*--bandwidth"):
        gpu("h300")


def test_the_table_names_a_source_for_every_gpu() -> None:
    for name, entry in GPUS.items():
        assert name == entry.name
        assert entry.source
        assert 1e11 < entry.bandwidth < 1e13
        assert 1e13 < entry.flops < 1e16
        assert 1e10 < entry.memory < 1e12


@pytest.mark.parametrize(
    ("printed", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_gpu_is_recognised_by_what_drivers_print(printed: str, name: str | None) -> None:
    assert gpu_of_product(printed) == (GPUS[name] if name else None)


def test_prompt_tables_of_tensorrt_llm() -> None:
    """The whole buffer is cleared, and each live table read and written, at every step."""
    config, table = DyCokeConfig.paper(), 2961 * 3584 * 2
    assert prompt_table_traffic(table, slots=64, live=64) == 64 * 3 * table
    alone = prompt_tables(MODEL, SUSTAINED, config, Workload(), slots=64)
    assert alone.bytes == (64 + 2) * table
    assert alone.seconds == pytest.approx(alone.bytes / SUSTAINED.bandwidth)
    # Built for 64, a sequence alone pays more than ten times what pruning gains it.
    _, merged, pruned = compare_floors(MODEL, SUSTAINED, config, Workload())
    assert alone.seconds > 10 * (merged.time_per_token - pruned.time_per_token)
    # Every GPU has the whole table: more of them do not share it.
    shared = prompt_tables(MODEL, SUSTAINED, config, Workload(gpus=2), slots=64)
    assert shared.seconds == alone.seconds
    with pytest.raises(DyCokeError, match="max_batch=4 is not allowed; allowed: at least batch=8"):
        prompt_tables(MODEL, SUSTAINED, config, Workload(batch=8), slots=4)


def test_the_command_shows_them() -> None:
    done = dycoke("floors", "--max-batch", "64", "--json")
    assert done.returncode == 0, done.stderr
    tables = [setting["prompt_tables"]["bytes"] for setting in json.loads(done.stdout)["settings"]]
    assert tables == [66 * rows * 3584 * 2 for rows in (6273, 2961, 2961)]
    shown = dycoke("floors", "--max-batch", "64").stdout
    assert "prompt" in shown
    assert "0.292" in shown  # ms on an H200, at 4.8 TB/s
