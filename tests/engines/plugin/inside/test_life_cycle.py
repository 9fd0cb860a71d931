"""Types, shapes, fields, images, launches and errors, with launches recorded and not run."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.engines.plugin_fields import rope_fields, score_fields, select_fields
from dycoke_trt.tests.engines.plugin.inside.life import (
    BUILD,
    FIELD_TYPES,
    FOLDER,
    RUNTIME,
    Launch,
    Plugin,
    World,
    load,
    manifest,
    tensors,
)

HEADS, KV_HEADS, DIM, BLOCK, LAYERS, SPLITS = 4, 2, 16, 8, 3, 2
ROWS, TOKENS, WIDTH = 3, 7, 4
KERNELS = FOLDER / "one"
NAMES = ("DycokeScore", "DycokeSelect", "DycokeRope")
PAPER, ORDER = DyCokeConfig.paper(), DyCokeConfig(memory=0.5, order="importance")
_world = load()


@pytest.fixture(params=["v3", "v2"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    _world.reset()
    _world.use(request.param)
    yield _world
    assert _world.cuda.fake_forbidden() == 0


def fields(name: str, kernels: Path = KERNELS, config: DyCokeConfig = PAPER) -> dict[str, Any]:
    if name == "DycokeScore":
        return score_fields(kernels, BLOCK, layer=1, splits=SPLITS)
    if name == "DycokeSelect":
        return select_fields(kernels, BLOCK, config, layers=LAYERS, visual_base=100)
    return rope_fields(kernels)


def ints(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.int32)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.float32)


def inputs(
    name: str, kernels: Path = KERNELS, config: DyCokeConfig = PAPER
) -> list[np.ndarray[Any, Any]]:
    """A prompt chunk of 5 tokens and two decoding rows."""
    types = np.array([0, 1, 1], np.int32)
    pointers = np.array([[4096, 0]], np.int64)
    mapping = np.array([[0, i] for i in range(LAYERS)], np.int32)
    host: list[np.ndarray[Any, Any]] = [types, pointers, mapping]
    qkv = floats(TOKENS, (HEADS + 2 * KV_HEADS) * DIM)
    cos_sin = floats(1, 64 * DIM)
    table = ints(1, ROWS, 2, WIDTH)
    if name == "DycokeScore":
        return [qkv, cos_sin, ints(ROWS), table, *host]
    if name == "DycokeRope":
        return [qkv, cos_sin, ints(ROWS), ints(ROWS), types]
    common = [ints(TOKENS), ints(ROWS), ints(ROWS), table, ints(WIDTH + 1), *host]
    after = [floats(TOKENS, HEADS * DIM)] if config.order == "importance" else []
    if kernels != KERNELS:
        return [*common, floats(ROWS, WIDTH * BLOCK), *after]
    statistics = [floats(ROWS, HEADS, SPLITS) for _ in range(2)]
    return [*common, floats(ROWS, HEADS, WIDTH * BLOCK), *statistics, *after]


def created(
    world: World, name: str, phase: int = RUNTIME, kernels: Path = KERNELS,
    config: DyCokeConfig = PAPER,
) -> Plugin:  # fmt: skip
    plugin = world.create(name, fields(name, kernels, config), phase)
    assert plugin is not None, world.messages
    return plugin


def test_creators(world: World) -> None:
    count = world.harness.harness_creators()
    creators = [world.harness.harness_creator(i).decode() for i in range(count)]
    versions = ("1", "1-v2")
    assert creators == [f"{name} {version} dycoke" for version in versions for name in NAMES]


LATER_FIELDS = ("memory", "order", "moved_from")
WITH_ORDER = [*((name, PAPER) for name in NAMES), ("DycokeSelect", ORDER)]
with_order = pytest.mark.parametrize(
    ("name", "config"), WITH_ORDER, ids=[*NAMES, "DycokeSelect-order"]
)


@with_order
@pytest.mark.parametrize("folder", ["one", "two"])
def test_building_an_engine(world: World, name: str, config: DyCokeConfig, folder: str) -> None:
    """What a builder asks, in its order, and a plan's round trip; nothing touches the driver."""
    kernels = FOLDER / folder
    plugin = created(world, name, BUILD, kernels, config)
    twin = plugin.clone()
    given = inputs(name, kernels, config)
    outputs = twin.infer(*given)
    if name == "DycokeRope":
        assert [o.shape for o in outputs] == [given[0].shape]
    elif name == "DycokeSelect":
        assert [o.shape for o in outputs] == [given[3].shape, given[1].shape]
        assert [o.dtype for o in outputs] == [np.int32, np.int32]
    elif folder == "two":
        assert [o.shape for o in outputs] == [(ROWS, WIDTH * BLOCK)]
    else:
        statistics = (ROWS, HEADS, SPLITS)
        assert [o.shape for o in outputs] == [
            (ROWS, HEADS, WIDTH * BLOCK), statistics, statistics
        ]  # fmt: skip
    every = tensors(*given, *outputs)
    counts = (len(given), len(outputs))
    for place in range(len(every)):
        taken = world.harness.harness_combinations(twin.handle, every, *counts, place)
        assert taken == 1, (name, place)
    assert world.harness.harness_configure(twin.handle, every, *counts) == 0
    assert twin.workspace(given, outputs) % 256 == 0

    again = twin.deserialized()
    assert again.serialize() == plugin.serialize()
    assert world.cuda.fake_modules() == 0
    assert world.cuda.fake_allocations() == 0
    for one in (plugin, twin, again):
        one.destroy()


@with_order
def test_timing_while_building_reads_nothing(world: World, name: str, config: DyCokeConfig) -> None:
    plugin = created(world, name, BUILD, config=config)
    timed = plugin.attach()
    assert timed is not None
    given = inputs(name, config=config)
    for array in given:
        world.cuda.fake_mark_device(array.ctypes.data, array.nbytes)
    status, outputs = timed.enqueue(*given)
    assert status == 0, world.messages
    assert all((output == 0).all() for output in outputs)
    assert not world.launches
    assert world.cuda.fake_allocations() == 0
    for array in given:
        world.cuda.fake_unmark_device(array.ctypes.data)
    plugin.destroy()
    timed.destroy()


@with_order
@pytest.mark.parametrize("folder", ["one", "two"])
def test_a_step(world: World, name: str, config: DyCokeConfig, folder: str) -> None:
    """Grids and launch order of a mixed batch; a recorded step allocates and loads nothing."""
    kernels = FOLDER / folder
    plugin = world.attached(name, fields(name, kernels, config))
    given = inputs(name, kernels, config)
    heads, kv_heads = (HEADS, KV_HEADS) if folder == "one" else (2, 1)
    given[0] = floats(TOKENS, (heads + 2 * kv_heads) * DIM) if name != NAMES[1] else given[0]
    for recorded in (False, True):
        world.cuda.fake_capture(int(recorded))
        world.launches.clear()
        status, _ = plugin.enqueue(*given)
        assert status == 0, world.messages
        got = [(launch.entry, launch.grid) for launch in world.launches]
        if name == "DycokeScore":
            expected = [("logits_kernel", (ROWS, kv_heads, SPLITS))]
            expected += [("scores_kernel", (ROWS, 1, 1))] if folder == "two" else []
        elif name == "DycokeSelect":
            expected = [("context_kernel", (1, 1, 1)), ("select_kernel", (ROWS, 1, 1))]
            expected += [("reorder_kernel", programs(folder))] if config == ORDER else []
        else:
            expected = [("rotary_kernel", (TOKENS, 1, 1))]
        assert got == expected
    world.cuda.fake_capture(0)
    assert world.cuda.fake_forbidden() == 0
    plugin.destroy()
    assert world.cuda.fake_allocations() == 0


@pytest.mark.parametrize("sm", [90, 100, 120, 80, 86])
def test_images_by_gpu(world: World, sm: int) -> None:
    """sm_90 has a cubin here; whatever else is new enough compiles PTX."""
    world.reset(sm)
    world.attached("DycokeRope", fields("DycokeRope")).destroy()


def replaced(name: str, old: bytes, new: bytes) -> dict[str, Any]:
    changed = fields(name)
    data = changed["images"].tobytes()
    assert old in data
    return changed | {"images": np.frombuffer(data.replace(old, new, 1), np.uint8)}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"dycoke-images 1", b"dycoke-images 2", "not format 1"),
        (b"grid tokens", b"grid", "cannot read 'image rotary"),
        (b"bytes ", b"bytes 9", "cut off"),
        (b"float32\n", b"float64\n", "float64"),
        (b"image rotary", b"image rotari", ""),
    ],
)
def test_images_that_are_wrong(world: World, old: bytes, new: bytes, says: str) -> None:
    changed = replaced("DycokeRope", old, new)
    plugin = world.create("DycokeRope", changed)
    if says:
        assert plugin is None
        assert says in world.messages
    elif plugin is not None:  # one of two images is left
        plugin.destroy()


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_an_engine_that_are_damaged(world: World, name: str) -> None:
    """V2 reads its own bytes; those of a V3 plugin are fields again when TensorRT hands them on."""
    world.use("v2")
    plugin = created(world, name)
    whole = plugin.serialize()
    plugin.destroy()
    cuts = [0, 5, 16, 17, 27, 28, 40, len(whole) // 2, len(whole) - 1]
    for damaged in [*(whole[:cut] for cut in cuts), b"dycoke-fields 2" + whole[15:], whole + b"x"]:
        assert world.deserialized(name, damaged) is None, len(damaged)
    begin = len(b"dycoke-fields 1\n")
    for place in range(begin, begin + 12):  # the first head: name's length, type, count
        for value in (0x7F, 0xFF):
            changed = whole[:place] + bytes([value]) + whole[place + 1 :]
            assert world.deserialized(name, changed) is None, place
    assert "reading an engine" in world.messages


def test_a_context_that_was_not_attached(world: World) -> None:
    """V3 refuses the step; V2, whose attaching cannot fail, tries once more."""
    plugin = created(world, "DycokeRope")
    status, _ = plugin.enqueue(*inputs("DycokeRope"))
    assert status == (0 if world.interface == "v2" else -1)
    assert ("was not attached" in world.messages) == (world.interface == "v3")
    plugin.destroy()


@pytest.mark.parametrize("name", NAMES)
def test_networks_that_do_not_fit(world: World, name: str) -> None:
    plugin = created(world, name, BUILD)
    given = inputs(name)
    count = world.harness.harness_outputs(plugin.handle)
    out = tensors(*(floats(1) for _ in range(count)))
    for wrong in (given[:-1], [floats(1, 1, 1, 1, 1), *given[1:]]):
        done = world.harness.harness_infer(plugin.handle, tensors(*wrong), len(wrong), out, count)
        assert done == -1
    assert "has 5 dimensions, expected" in world.messages
    assert "the network gives it" in world.messages
    plugin.destroy()


@pytest.mark.parametrize(
    ("sm", "old", "new", "says"),
    [
        (75, b"", b"", "kernel rotary has no image for sm_75; the engine holds: sm_90, ptx"),
        (90, b" rotary_kernel ", b" other_kernel ", "CUDA_ERROR_NOT_FOUND"),
        (90, b"image rotary sm_90", b"image rotary sm_89", ""),
        (89, b"image rotary sm_90", b"image rotary sm_89", "CUDA_ERROR_NO_BINARY_FOR_GPU"),
        (90, b"parameter layer 4", b"parameter layer 8", "parameter 8 has 4 bytes in the image"),
        (90, b" hidden 2 ", b" hidden 1 ", "more than the 11 parameters"),
    ],
)
def test_kernels_that_do_not_fit(world: World, sm: int, old: bytes, new: bytes, says: str) -> None:
    world.reset(sm)
    changed = replaced("DycokeRope", old, new) if old else fields("DycokeRope")
    plugin = world.create("DycokeRope", changed)
    assert plugin is not None, world.messages
    there = plugin.attach()
    if world.interface == "v3":
        assert (there is None) == bool(says), world.messages
        assert world.messages.count("\n") == bool(says)
    elif there is not None:  # cannot say no: the step does
        status, _ = there.enqueue(*inputs("DycokeRope"))
        assert (status == 0) == (not says), world.messages
    assert says in world.messages
    plugin.destroy()
    if there is not None:
        there.destroy()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b" warps 1 ", b" warps 2 ", "launching rotary: CUDA_ERROR_INVALID_VALUE"),
        (b"parameter layer 4", b"parameter layar 4", "is layar of 4 bytes, the plugin passes"),
    ],
)
def test_launches_that_fail(world: World, old: bytes, new: bytes, says: str) -> None:
    plugin = world.attached("DycokeRope", replaced("DycokeRope", old, new))
    status, _ = plugin.enqueue(*inputs("DycokeRope"))
    assert status == -1
    assert says in world.messages
    plugin.destroy()


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_the_driver_reach_tensorrt(world: World, name: str) -> None:
    plugin = world.attached(name, fields(name))
    world.cuda.fake_fail(b"cuLaunchKernel")
    status, _ = plugin.enqueue(*inputs(name))
    assert status == -1
    assert f"{name}: enqueue: launching" in world.messages
    assert "CUDA_ERROR_LAUNCH_FAILED" in world.messages
    plugin.destroy()


@pytest.mark.parametrize("name", NAMES)
def test_host_tensors_in_device_memory(world: World, name: str) -> None:
    plugin = world.attached(name, fields(name))
    given = inputs(name)
    types = next(i for i in given if i.shape == (ROWS,) and i.tolist() == [0, 1, 1])
    world.cuda.fake_mark_device(types.ctypes.data, types.nbytes)
    status, _ = plugin.enqueue(*given)
    world.cuda.fake_unmark_device(types.ctypes.data)
    assert status == -1
    assert "host_request_types is in device memory" in world.messages
    plugin.destroy()


def mixed_up(given: list[Any]) -> None:
    given[5][:] = [1, 0, 1]


def two_pools(given: list[Any]) -> None:
    given[7][1] = [1, 0]


def no_pool(given: list[Any]) -> None:
    given[6][:] = 0


def other_order(given: list[Any]) -> None:
    given[7][:, 1] = [1, 0, 2]


def short_table(given: list[Any]) -> None:
    given[4] = ints(WIDTH)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (mixed_up, "prompts come first"),
        (two_pools, "more than one pool"),
        (no_pool, "host_kv_cache_pool_pointers"),
        (other_order, "layer 0 is number 1 of the pool"),
        (short_table, "keep_table has 4 entries for tables of 4 blocks"),
    ],
)
def test_steps_that_are_refused(world: World, fault: Any, says: str) -> None:
    plugin = world.attached("DycokeSelect", fields("DycokeSelect", config=ORDER))
    given = inputs("DycokeSelect", config=ORDER)
    fault(given)
    status, _ = plugin.enqueue(*given)
    assert status == -1
    assert says in world.messages
    assert not world.launches
    plugin.destroy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", ["images", "splits", *LATER_FIELDS, "block_bytes"])
def test_missing_fields(world: World, name: str, missing: str) -> None:
    given = fields(name)
    if missing in given:
        del given[missing]
        assert world.create(name, given) is None
        assert f"{name}: creating: field '{missing}' is missing" in world.messages


def test_an_engine_of_the_release_before_is_refused(world: World) -> None:
    """Its fields say nothing of memory and order, and its images are of kernels without them."""
    old = {k: v for k, v in fields("DycokeSelect").items() if k not in LATER_FIELDS}
    stored = b"dycoke-fields 1\n"  # as V2 keeps them; V3 is given the fields themselves
    for name, array in old.items():
        head = struct.pack("<iii", len(name), FIELD_TYPES[array.dtype.name], array.size)
        stored += head + name.encode() + array.tobytes()
    again = (
        world.deserialized("DycokeSelect", stored)
        if world.interface == "v2"
        else world.create("DycokeSelect", old, RUNTIME)
    )
    assert again is None
    assert "field 'memory' is missing" in world.messages
    assert "build the engine and the plugin from the same release" in world.messages


@pytest.mark.parametrize(
    ("field", "value"),
    [("memory", 1.0), ("memory", -0.5), ("memory", np.nan), ("order", 2), ("order", -1)],
)
def test_fields_out_of_range(world: World, field: str, value: float) -> None:
    given = fields("DycokeSelect")
    given[field] = np.array([value], given[field].dtype)
    assert world.create("DycokeSelect", given) is None
    assert f"field '{field}' is" in world.messages


def test_an_order_needs_the_kernel_that_moves(world: World) -> None:
    """And the input behind which it may: neither is there for an order that moves nothing."""
    assert "reorder" not in str(fields("DycokeSelect")["images"].tobytes())
    with_order = fields("DycokeSelect", config=ORDER)
    plugin = world.create("DycokeSelect", fields("DycokeSelect") | {"order": with_order["order"]})
    assert plugin is not None
    assert refused_in_the_end(plugin, inputs("DycokeSelect", config=ORDER))
    assert "kernel reorder has no image" in world.messages
    plugin = created(world, "DycokeSelect", config=ORDER)
    out = tensors(*(floats(1) for _ in range(2)))
    given = inputs("DycokeSelect")
    done = world.harness.harness_infer(plugin.handle, tensors(*given), len(given), out, 2)
    assert done == -1
    plugin.destroy()


def refused_in_the_end(plugin: Plugin, given: list[Any]) -> bool:
    """V3 says no to a context; V2 cannot, its step does."""
    there = plugin.attach()
    plugin.destroy()
    if there is None:
        return True
    status, _ = there.enqueue(*given)
    there.destroy()
    return status != 0


def test_prompts_alone_move_nothing(world: World) -> None:
    plugin = world.attached("DycokeSelect", fields("DycokeSelect", config=ORDER))
    given = inputs("DycokeSelect", config=ORDER)
    given[5][:] = 0
    status, _ = plugin.enqueue(*given)
    assert status == 0, world.messages
    assert [launch.entry for launch in world.launches] == ["context_kernel", "select_kernel"]
    plugin.destroy()


def test_averages_take_memory_where_there_are_any(world: World) -> None:
    taken = {}
    for config in (PAPER, ORDER):
        plugin = world.attached("DycokeSelect", fields("DycokeSelect", config=config))
        status, _ = plugin.enqueue(*inputs("DycokeSelect", config=config))
        assert status == 0, world.messages
        (select,) = [launch for launch in world.launches if launch.entry == "select_kernel"]
        scores, average = (pointer(select, name) for name in ("state_scores", "state_average"))
        taken[config.memory] = average - scores
        world.launches.clear()
        plugin.destroy()
    assert taken[0.0] == 0
    assert taken[0.5] >= 4 * BLOCK * (1 << 20) // int(fields("DycokeSelect")["block_bytes"][0])


def programs(folder: str) -> tuple[int, int, int]:
    """Of the kernel that moves: as many as its manifest says, whatever the batch."""
    (image,) = (i for i in manifest(folder)["images"] if i["entry"] == "reorder_kernel" and
                i["target"] == "sm_90")  # fmt: skip
    x, y, z = image["grid"]
    return x, y, z


def pointer(launch: Launch, name: str) -> int:
    """What was passed for a parameter of select_kernel."""
    images = {image["entry"]: image for image in manifest("one")["images"]}
    names = [parameter["name"] for parameter in images[launch.entry]["parameters"]]
    return int.from_bytes(launch.values[names.index(name)], "little")


def test_contexts_of_an_engine_share_a_state_and_pools_do_not(world: World) -> None:
    first, second = (world.attached("DycokeSelect", fields("DycokeSelect")) for _ in range(2))
    assert world.cuda.fake_allocations() == 2
    records = []
    for plugin, pool in ((first, 4096), (second, 4096), (second, 8192)):
        given = inputs("DycokeSelect")
        given[6][0, 0] = pool
        status, _ = plugin.enqueue(*given)
        assert status == 0, world.messages
        records.append(pointer(world.launches[-1], "state_record"))
    assert records[0] == records[1] != records[2]
    given[6][0, 0] = 16_384  # both states are in use by now
    assert second.enqueue(*given)[0] == -1
    assert "the KV pool moved" in world.messages
    first.destroy()
    second.destroy()
    assert world.cuda.fake_allocations() == 0


def test_another_major_version(world: World) -> None:
    world.harness.harness_report_major(11)
    try:
        assert not world.harness.harness_init(world.library)
    finally:
        world.harness.harness_report_major(10)
    assert "this library is for TensorRT 10, the process has 11" in world.messages
