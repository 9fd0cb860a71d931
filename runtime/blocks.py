"""KV blocks: who owns which, and what is free."""

from __future__ import annotations


class BlockPool:
    """A free list of physical block indices 0..num_blocks-1.

    Invariant: every block is free or owned by exactly one sequence.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._owned = bytearray(num_blocks)  # a GPU's pool may have 600,000 blocks: no searching

    @property
    def free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks; ValueError if fewer are free (callers check `free` first)."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._owned[block] = 1
        return taken

    def release(self, blocks: list[int]) -> None:
        """Gives blocks back. ValueError for one that is free already: a sequence freed twice."""
        if twice := sorted(block for block in blocks if not self._owned[block]):
            raise ValueError(f"blocks {twice} are free already")
        for block in blocks:
            self._owned[block] = 0
        self._free.extend(reversed(blocks))


def blocks_for(tokens: int, tokens_per_block: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // tokens_per_block)
