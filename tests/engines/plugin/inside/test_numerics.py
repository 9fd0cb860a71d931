"""Whole steps through the compiled plugin, equal to core/'s in tables, lengths and decisions.

Each launch runs the kernel's source, in Triton's interpreter, on the pointers that C++ passed, in
fp32 and fp16 (the interpreter has no bf16 arithmetic), on one rank and on two.

Requests come and go on recycled blocks; prompts arrive in chunks beside decoding rows.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dycoke_trt.core import pool as kv_pool
from dycoke_trt.core import state as core
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.importance import reorder_pool
from dycoke_trt.core.pool import encode_table
from dycoke_trt.core.reselection import block_keep_table, visual_scores
from dycoke_trt.engines.plugin_fields import rope_fields, score_fields, select_fields
from dycoke_trt.kernels.context import context_kernel
from dycoke_trt.kernels.images import KernelShape, plugin_variants
from dycoke_trt.kernels.reorder import reorder_kernel
from dycoke_trt.kernels.rotary import rotary_kernel, rotary_table
from dycoke_trt.kernels.score import logits_kernel, scores_kernel
from dycoke_trt.kernels.select import select_kernel
from dycoke_trt.tests.engines.plugin.inside.life import (
    FOLDER,
    Launch,
    Plugin,
    World,
    load,
    manifest,
    scalar,
)
from dycoke_trt.tests.kernels.device.test_select import (
    LAYERS,
    THRESHOLD,
    VISUAL,
    decided,
)
from dycoke_trt.tests.kernels.device.test_select import World as Requests
from torch import Tensor

HEADS, KV_HEADS, DIM, BLOCK, WIDTH = 4, 2, 16, 8, 8
SCORING_LAYER, P = 1, 0.6
RASTER = DyCokeConfig(l=SCORING_LAYER + 1, p=P, gate_threshold=THRESHOLD)
ORDER = RASTER.with_changes(memory=0.6, order="importance")
KERNELS = {
    kernel.fn.__name__: kernel
    for kernel in (
        context_kernel, logits_kernel, reorder_kernel, rotary_kernel, scores_kernel, select_kernel
    )
}  # fmt: skip
_TORCH = {
    "*fp32": torch.float32, "*fp16": torch.float16, "*i32": torch.int32, "*u8": torch.uint8,
    "*i64": torch.int64,
}  # fmt: skip
_world = load()


class Interpreter:
    """Runs a recorded launch in Triton's interpreter."""

    def __init__(self, folder: str) -> None:
        described = manifest(folder)
        self.images = {image["entry"]: image for image in described["images"]}
        self.constants: dict[str, dict[str, int]] = {}
        shape = KernelShape(**described["shape"] | {"dtype": Dtype(described["shape"]["dtype"])})
        for variant in plugin_variants(shape, (BLOCK,)):  # the same kernel, with the same constants
            entry = variant.kernel.fn.__name__
            here = {name: int(value) for name, value in variant.constants.items()}
            # Products of 16-bit numbers are exact in fp32, where the interpreter multiplies.
            assert self.images[entry]["constants"] | {"WIDEN": 0} == here | {"WIDEN": 0}
            self.constants[entry] = here

    def __call__(self, launch: Launch) -> None:
        image = self.images[launch.entry]
        named = image["parameters"]
        assert len(launch.values) == len(named) + image["hidden_parameters"]
        assert all(not any(raw) for raw in launch.values[len(named) :])
        arguments = []
        for parameter, raw in zip(named, launch.values, strict=False):
            kind = parameter["type"]
            if not kind.startswith("*"):
                arguments.append(scalar(kind, raw))
                continue
            address = int.from_bytes(raw, "little")
            buffer = (ctypes.c_char * 8).from_address(address)
            arguments.append(torch.frombuffer(buffer, dtype=_TORCH[kind], count=1))
        # Any number of programs moves all there is; here each takes its time after the other.
        grid = (2, 1, 1) if launch.entry == "reorder_kernel" else launch.grid
        KERNELS[launch.entry][grid](*arguments, **self.constants[launch.entry])


@pytest.fixture
def world() -> Iterator[World]:
    _world.reset()
    yield _world
    _world.cuda.fake_capture(0)
    _world.run = None


@dataclass
class Rank:
    """One rank's plugins, its heads and its part of the pool."""

    number: int
    ranks: int
    pool: Tensor
    plugins: dict[str, Plugin] = field(default_factory=dict)

    @classmethod
    def make(
        cls, world: World, folder: str, number: int, ranks: int, pool: Tensor,
        config: DyCokeConfig = RASTER,
    ) -> Rank:  # fmt: skip
        kernels = FOLDER / folder
        rank = cls(number, ranks, torch.empty(0))
        rank.pool = rank.heads(pool).clone()
        rank.plugins = {
            "score": world.attached(
                "DycokeScore", score_fields(kernels, BLOCK, layer=SCORING_LAYER, splits=2)
            ),
            "select": world.attached(
                "DycokeSelect",
                select_fields(kernels, BLOCK, config, layers=LAYERS, visual_base=VISUAL),
            ),
            "rope": world.attached("DycokeRope", rope_fields(kernels)),
        }
        return rank

    def heads(self, pool: Tensor) -> Tensor:
        """This rank's heads of a pool of all."""
        return pool.chunk(self.ranks, 3)[self.number]

    def part(self, qkv: Tensor) -> np.ndarray[Any, Any]:
        """This rank's q | k | v of [tokens, heads + 2 kv heads, D]."""
        query, key, value = qkv.split([HEADS, KV_HEADS, KV_HEADS], 1)
        parts = [t.chunk(self.ranks, 1)[self.number] for t in (query, key, value)]
        return torch.cat(parts, 1).flatten(1).contiguous().numpy()


def rotated(x: Tensor, position: Tensor, table: Tensor) -> Tensor:
    """[tokens, heads, D] turned to positions [tokens], from the definition, rounded to x's type."""
    cos, sin = table[position, None].unbind(-1)
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def counted() -> list[int]:
    """Rows by decision, then rows and tokens that moved, of the published file."""
    path = Path(os.environ["DYCOKE_COUNTERS_FILE"])
    if not path.exists():
        return [0] * 6
    counts = json.loads(path.read_text())
    rows = [counts["rows"][name] for name in ("full", "reused", "reselected", "unknown")]
    return [*rows, counts["reorders"], counts["moved"]]


FOLDERS = {"one": 1, "two": 2, "half_one": 1, "half_two": 2}  # and how many ranks share the heads
CASES = [
    *((folder, *case) for folder in FOLDERS for case in (
        ("v3", 1, RASTER), ("v3", 2, RASTER), ("v2", 1, RASTER), ("v3", 24, ORDER)
    )),
    ("one", "v2", 8, ORDER),
    ("half_two", "v2", 8, ORDER),
    ("one", "v3", 7, RASTER.with_changes(memory=0.6)),
    ("two", "v3", 24, RASTER.with_changes(order="importance")),
]  # fmt: skip


def name_of(value: object) -> str:
    if isinstance(value, DyCokeConfig):
        return f"{value.order}-memory{value.memory}"
    return str(value)


@pytest.mark.parametrize(("folder", "interface", "seed", "config"), CASES, ids=name_of)
def test_steps_equal_core(
    world: World, folder: str, interface: str, seed: int, config: DyCokeConfig
) -> None:
    ranks = FOLDERS[folder]
    world.use(interface)
    dtype = getattr(torch, manifest(folder)["shape"]["dtype"])
    requests = Requests(BLOCK, WIDTH, seed)
    pool = torch.randn(
        requests.num_blocks, LAYERS, 2, KV_HEADS, BLOCK, DIM, generator=requests.random
    ).to(dtype)
    cos_sin = rotary_table(WIDTH * BLOCK, DIM, 10_000.0, "cpu")
    keep_table = block_keep_table(P, WIDTH)
    mapping = np.array([[0, layer] for layer in range(LAYERS)], np.int32)
    before = counted()
    team = [Rank.make(world, folder, number, ranks, pool, config) for number in range(ranks)]
    world.run = Interpreter(folder)
    counts = torch.zeros(6, dtype=torch.int64)
    orders = config.order == "importance"
    fed = torch.randn(3, HEADS + 2 * KV_HEADS, DIM, generator=requests.random)
    mixed = chunked = 0
    for step in range(7):
        world.cuda.fake_capture(int(step > 0))
        contexts, decodes, prompts = requests.advance()
        rows, first = contexts + decodes, len(contexts)
        ids = [id_ for part in prompts for id_ in part] + [1] * len(decodes)
        mixed += bool(contexts and decodes)
        chunked += any(not row.decoding for row in contexts)
        blocks = requests.blocks(rows)
        table = encode_table(blocks, LAYERS).contiguous()
        lengths = torch.tensor([row.length for row in rows], dtype=torch.int32)
        chunks = [len(part) for part in prompts] + [len(row.ids) for row in decodes]
        positions = [
            position
            for row, part in zip(rows, [*prompts, *[[1]] * len(decodes)], strict=True)
            for position in range(row.length - len(part), row.length)
        ]
        context = torch.tensor(chunks, dtype=torch.int32)
        visual = torch.zeros(first, WIDTH * BLOCK, dtype=torch.bool)
        for i, row in enumerate(contexts):
            visual[i, : row.length] = torch.tensor(row.ids[: row.length]) == VISUAL
        core.write_context(
            requests.theirs, blocks[:first], (lengths - context)[:first], lengths[:first], visual
        )

        fed = fed + 0.3 * torch.randn(fed.shape, generator=requests.random)
        filler = torch.randn(len(ids) - len(decodes), *fed.shape[1:], generator=requests.random)
        qkv = torch.cat([filler, fed[: len(decodes)]]).to(dtype)
        position = torch.tensor(positions)
        query, key, value = qkv.split([HEADS, KV_HEADS, KV_HEADS], 1)
        turned_query, turned_key = (rotated(x, position, cos_sin) for x in (query, key))

        types = np.array([0] * first + [1] * len(decodes), np.int32)
        angles = cos_sin.reshape(1, -1).numpy()
        table4 = table[None].numpy()
        outputs = []
        for rank in team:
            pointers = np.array([[rank.pool.data_ptr(), 0]], np.int64)
            status, out = rank.plugins["score"].enqueue(
                rank.part(qkv), angles, lengths.numpy(), table4, types, pointers, mapping
            )
            assert status == 0, world.messages
            outputs.append(out)
            status, (turned,) = rank.plugins["rope"].enqueue(
                rank.part(qkv), angles, lengths.numpy(), context.numpy(), types
            )
            assert status == 0, world.messages
            expected = rank.part(torch.cat([turned_query, turned_key, value], 1))
            exact = torch.finfo(dtype).eps  # a rounding of fp16 may go the other way
            np.testing.assert_allclose(turned, expected, atol=1e-5, rtol=exact)
        given = outputs[0] if ranks == 1 else [outputs[0][0] + outputs[1][0]]  # the all-reduce
        selected = []
        for rank in team:
            pointers = np.array([[rank.pool.data_ptr(), 0]], np.int64)
            # What is never read may be anything.
            after = [np.full((len(ids), HEADS // ranks * DIM), np.nan, turned.dtype)] * orders
            world.launches.clear()
            status, out = rank.plugins["select"].enqueue(
                np.array(ids, np.int32), lengths.numpy(), context.numpy(), table4,
                keep_table.numpy(), types, pointers, mapping, *given, *after,
            )  # fmt: skip
            assert status == 0, world.messages
            selected.append(out)
            moving = [one for one in world.launches if one.entry == "reorder_kernel"]
            assert len(moving) == (orders and len(decodes) > 0)
        assert world.cuda.fake_forbidden() == 0
        for new_table, new_lengths in selected:  # prompts pass through
            np.testing.assert_array_equal(new_table[0, :first], table[:first])
            np.testing.assert_array_equal(new_lengths[:first], lengths[:first])
        if not decodes:
            continue

        there, length, prompt = blocks[first:], lengths[first:], context[first:]
        seen, _ = core.visual_positions(requests.theirs, there, length, prompt)
        keys = kv_pool.gather(pool, table[first:], SCORING_LAYER, kv_pool.KEY)
        part = slice(len(ids) - len(decodes), None)
        scores = visual_scores(
            turned_query[part].float(), turned_key[part].float(), keys.float(), length, seen
        )
        theirs = core.reselect(
            requests.theirs, there, length, prompt, scores,
            keep_table=keep_table, threshold=THRESHOLD, memory=config.memory, order=config.order,
        )  # fmt: skip
        if theirs.order is not None:
            reorder_pool(pool, theirs.order, there, slice(SCORING_LAYER, None))
            moved = (theirs.order != torch.arange(WIDTH * BLOCK)).sum(1)
            counts[4:] += torch.stack([(moved > 0).sum(), moved.sum()])
        ranked = torch.where(seen, by_token(config, requests.theirs, there), 0)
        assert decided(theirs, ranked, seen, length)
        assert ((theirs.similarity - THRESHOLD).abs() > 1e-4).all()
        for new_table, new_lengths in selected:
            np.testing.assert_array_equal(new_table[0, first:], encode_table(theirs.table, LAYERS))
            np.testing.assert_array_equal(new_lengths[first:], theirs.lengths.int())
        for rank in team:
            assert torch.equal(rank.pool, rank.heads(pool))
        counts[:4] += torch.bincount(theirs.decision.long(), minlength=4)
        requests.retire()
    assert mixed
    assert chunked
    assert counts[1] > 0
    assert counts[2] > 0
    assert (counts[4] > 0) == orders
    world.cuda.fake_capture(0)
    for rank in team:
        for plugin in rank.plugins.values():
            plugin.destroy()
    published = [now - then for now, then in zip(counted(), before, strict=True)]
    assert published == (ranks * counts).tolist()


def by_token(config: DyCokeConfig, state: core.ReselectionState, blocks: Tensor) -> Tensor:
    """fp32 [S, M * B]: what selection ranks, as it lies behind a step."""
    per_token = state.average if config.memory > 0 else state.scores
    return per_token[blocks.clamp(0, state.num_blocks)].flatten(1)


def test_a_sequence_without_a_record_passes_through(world: World) -> None:
    """Its prompt was never seen here (reused blocks): unpruned, and counted."""
    before = counted()
    pool = torch.randn(WIDTH, LAYERS, 2, KV_HEADS, BLOCK, DIM)
    rank = Rank.make(world, "one", 0, 1, pool)
    world.run = Interpreter("one")
    table = encode_table(torch.randperm(WIDTH)[None], LAYERS)[None].contiguous().numpy()
    lengths = np.array([40], np.int32)
    keep_table = block_keep_table(P, WIDTH).numpy()
    status, (new_table, new_lengths) = rank.plugins["select"].enqueue(
        np.array([1], np.int32), lengths, np.array([38], np.int32), table, keep_table,
        np.array([1], np.int32), np.array([[pool.data_ptr(), 0]], np.int64),
        np.array([[0, 0], [0, 1]], np.int32), np.zeros((1, HEADS, WIDTH * BLOCK), np.float32),
        np.zeros((1, HEADS, 2), np.float32), np.ones((1, HEADS, 2), np.float32),
    )  # fmt: skip
    assert status == 0, world.messages
    np.testing.assert_array_equal(new_table, table)
    np.testing.assert_array_equal(new_lengths, lengths)
    for plugin in rank.plugins.values():
        plugin.destroy()
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [
        0, 0, 0, 1, 0, 0
    ]  # fmt: skip
