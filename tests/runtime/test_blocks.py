"""KV blocks: each has one owner."""

from __future__ import annotations

import pytest
from dycoke_trt.runtime.blocks import BlockPool, blocks_for
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 5), max_size=8), st.randoms())
def test_blocks_belong_to_one_owner(sizes: list[int], random) -> None:
    pool = BlockPool(20)
    owned: list[list[int]] = []
    for size in sizes:
        if size > pool.free:
            with pytest.raises(ValueError, match="free"):
                pool.allocate(size)
            pool.release(owned.pop(random.randrange(len(owned))))
            continue
        owned.append(pool.allocate(size))
    flat = [block for blocks in owned for block in blocks]
    assert len(set(flat)) == len(flat)
    assert pool.free == 20 - len(flat)
    for blocks in owned:
        pool.release(blocks)
    assert sorted(pool.allocate(20)) == list(range(20))


def test_freeing_twice_is_a_bug() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.release(blocks)
    with pytest.raises(ValueError, match="free already"):
        pool.release(blocks)
    assert [blocks_for(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
