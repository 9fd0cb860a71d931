"""K and V of tokens that change places, beside core/importance.py on the same pool, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from dycoke_trt.core import importance as core
from dycoke_trt.core.pool import PoolLayout, encode_table
from dycoke_trt.kernels.reorder import ROWS, reorder_pool
from dycoke_trt.kernels.score import ScoreWorkspace
from dycoke_trt.tests.draws import few_examples, given, st
from dycoke_trt.tests.kernels.device.batches import DEVICE, POISON_BLOCK
from torch import Tensor


@dataclass
class Moves:
    """Rows of which some have swaps."""

    pool: Tensor
    blocks: Tensor  # int64 [S, M]; one that no swap is in is not there
    order: Tensor  # int64 [S, M * B]

    @classmethod
    def draw(cls, layout: PoolLayout, rows: int, dtype: torch.dtype, seed: int) -> Moves:
        random = torch.Generator().manual_seed(seed)
        width, size = layout.num_blocks // (rows + 1), layout.tokens_per_block
        blocks = torch.randperm(layout.num_blocks, generator=random)[: rows * width]
        blocks = blocks.view(rows, width)
        places = torch.rand(rows, width * size, generator=random) < 0.3
        places[torch.rand(rows, generator=random) < 0.4] = False  # nothing moves
        turn = int(torch.randint(0, width * size, (), generator=random))
        order = core.swaps(places.roll(turn, 1), places)
        stays = (order == torch.arange(width * size)).view(rows, width, size).all(-1)
        blocks[stays] = POISON_BLOCK
        bits = torch.randint(-(2**15), 2**15, (*layout.shape, 2), generator=random)
        pool = bits.to(torch.int16).view(dtype)[..., 0].contiguous()
        return cls(pool.to(DEVICE), blocks.to(DEVICE), order.to(DEVICE))

    def by_kernel(self, first_layer: int) -> Tensor:
        rows, width = self.blocks.shape
        _, layers, _, _, size, _ = self.pool.shape
        workspace = ScoreWorkspace.allocate(rows, 1, width, size, 1, DEVICE)
        workspace.swaps.fill_(10**8)  # the keys, and what lies behind the swaps
        half = width * size // 2
        for row, order in enumerate(self.order.tolist()):
            pairs = [(t, source) for t, source in enumerate(order) if t < source]
            lists = torch.tensor(pairs, dtype=torch.int32, device=DEVICE).view(-1, 2).T
            workspace.swaps[row, 1, : len(pairs)] = lists[0]
            workspace.swaps[row, 1, half : half + len(pairs)] = lists[1]
            workspace.moved[row] = len(pairs)
        pool, table = self.pool.clone(), encode_table(self.blocks, layers).contiguous()
        reorder_pool(pool, table, workspace, first_layer=first_layer)
        return pool

    def by_core(self, first_layer: int) -> Tensor:
        pool = self.pool.clone()
        there = self.blocks.where(self.blocks != POISON_BLOCK, 0)
        core.reorder_pool(pool, self.order, there, slice(first_layer, None))
        return pool


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int16), other.view(torch.int16))  # NaN is like itself


@few_examples
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    size=st.sampled_from([8, 16, 64]),
    dim=st.sampled_from([16, 18, 24, 128]),
    layers=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    rows=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_pool_equals_core(
    dtype: torch.dtype, size: int, dim: int, layers: int, kv_heads: int, rows: int, seed: int
) -> None:
    """In all layers from the first on, and nothing else: the whole pool is compared."""
    num_blocks = (rows + 1) * max(2, 256 // size)
    moves = Moves.draw(PoolLayout(num_blocks, layers, kv_heads, size, dim), rows, dtype, seed)
    first = seed % layers
    assert same(moves.by_kernel(first), moves.by_core(first))


LAYOUT = PoolLayout(12, 2, 1, 8, 16)


def example() -> Moves:
    """The only row moves."""
    draws = (Moves.draw(LAYOUT, 1, torch.float16, seed) for seed in range(100))
    return next(moves for moves in draws if not same(moves.by_core(0), moves.pool))


def test_a_swap_with_the_token_behind_and_a_missing_layer_show() -> None:
    moves = example()
    wrong = moves.order.clone()
    here = int((wrong[0] != torch.arange(wrong.shape[1], device=DEVICE)).nonzero()[0])
    there = int(wrong[0, here])
    other = there - 1 if int(wrong[0, there - 1]) == there - 1 != here else there + 1
    wrong[0, [here, there, other]] = torch.tensor([other, there, here], device=DEVICE)
    blocks = moves.blocks.where(moves.blocks != POISON_BLOCK, 11)
    astray = replace(moves, order=wrong, blocks=blocks)
    assert same(astray.by_kernel(0), astray.by_core(0))
    assert not same(astray.by_kernel(0), moves.by_core(0))
    assert not same(moves.by_kernel(1), moves.by_core(0))


def test_where_nothing_moves_nothing_is_read() -> None:
    moves = example()
    stay = torch.arange(moves.order.shape[1], device=DEVICE)[None]
    still = replace(moves, order=stay, blocks=torch.full_like(moves.blocks, POISON_BLOCK))
    assert same(still.by_kernel(0), moves.pool)


def test_more_rows_than_one_tile() -> None:
    """The only row that moves is the last of many."""
    moves = example()
    blocks = torch.full((ROWS + 70, moves.blocks.shape[1]), POISON_BLOCK, device=DEVICE)
    blocks[-1] = moves.blocks[0]
    order = torch.arange(moves.order.shape[1], device=DEVICE).repeat(len(blocks), 1)
    order[-1] = moves.order[0]
    many = replace(moves, blocks=blocks, order=order)
    assert same(many.by_kernel(0), moves.by_core(0))


def test_another_dtype_is_refused() -> None:
    pool = torch.zeros(LAYOUT.shape, dtype=torch.int8, device=DEVICE)
    table = torch.zeros(1, 2, 4, dtype=torch.int32, device=DEVICE)
    workspace = ScoreWorkspace.allocate(1, 1, 4, 8, 1, DEVICE)
    with pytest.raises(ValueError, match="int8"):
        reorder_pool(pool, table, workspace, first_layer=0)
