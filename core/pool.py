"""The paged KV pool: TensorRT-LLM's memory layout and block-table encoding, and access through it.

Layout (cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp, 1.2): [block][layer][K, V][kv head]
[token in block][dim]. A table entry is the flat index of a (block, layer 0, K or V) slab, so
entry = block * layers * 2 + field, with bit 31 set for the secondary (host) pool; the layer is
added on the host as a byte offset. K is stored after RoPE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


KEY, VALUE = 0, 1
FAST_BLOCKS = (16, 32, 64, 128)  # tokens per KV block of TensorRT-LLM's fast decode attention
_ENTRY_MASK = 0x7FFFFFFF


@dataclass(frozen=True)
class PoolLayout:
    """Shape of one KV pool; kv_heads counts the heads of this rank."""

    num_blocks: int
    layers: int
    kv_heads: int
    tokens_per_block: int
    head_dim: int

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        return (
            self.num_blocks, self.layers, 2, self.kv_heads, self.tokens_per_block, self.head_dim
        )  # fmt: skip

    @property
    def slab_elements(self) -> int:
        """Elements of one block's K (or V) of one layer."""
        return self.kv_heads * self.tokens_per_block * self.head_dim

    def block_bytes(self, element_bytes: int) -> int:
        """Bytes of one block over all layers, K and V."""
        return self.layers * 2 * self.slab_elements * element_bytes

    def element_offset(
        self, entry: int, layer: int, token: int, head: int = 0, dim: int = 0
    ) -> int:
        """Offset in elements from the base of the pool that `entry` names.

        entry: the table entry for K or V of token's block; token: logical position. The formula
        of TensorRT-LLM's KVBlockArray (kernels/kvCacheUtils.h), the layer added as on its host.
        """
        in_block = token % self.tokens_per_block
        within = (head * self.tokens_per_block + in_block) * self.head_dim + dim
        slab = layer * 2 + (entry & _ENTRY_MASK)
        return slab * self.slab_elements + within


def encode_table(blocks: Tensor, layers: int) -> Tensor:
    """Physical blocks int [..., M] -> TensorRT-LLM entries int32 [..., 2, M] (K, V planes)."""
    import torch

    keys = blocks * (layers * 2)
    return torch.stack([keys + KEY, keys + VALUE], dim=-2).to(torch.int32)


def decode_entries(entries: Tensor, layers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entries int32 -> (block, field K=0 / V=1, in secondary pool); inverse of `encode_table`."""
    slab = entries & _ENTRY_MASK
    return slab // (layers * 2), slab % (layers * 2), entries < 0


def gather(pool: Tensor, table: Tensor, layer: int, field: int) -> Tensor:
    """Reads K or V of a layer in logical order: [S, M*B, kv heads, D].

    pool: [num_blocks, layers, 2, kv heads, B, D]; table: int32 [S, 2, M] of `encode_table`. Padding
    entries read an arbitrary valid block: callers mask positions behind the length.
    """
    slabs = pool.flatten(0, 2)
    index = ((table[:, field] & _ENTRY_MASK) + 2 * layer).long().clamp(0, slabs.shape[0] - 1)
    return slabs[index].permute(0, 1, 3, 2, 4).flatten(1, 2)


def write(
    pool: Tensor, table: Tensor, layer: int, position: Tensor, key: Tensor, value: Tensor
) -> None:
    """Writes one token of each sequence, in place.

    position: int [S], logical position (in decoding length-1, with the table of that length).
    key, value: [S, kv heads, D], key after RoPE.
    """
    tokens_per_block = pool.shape[4]
    slabs = pool.flatten(0, 2)
    column = (position // tokens_per_block).long()[:, None]
    slot = (position % tokens_per_block).long()
    for field, data in ((KEY, key), (VALUE, value)):
        entry = table[:, field].gather(1, column).squeeze(1) & _ENTRY_MASK
        slabs[(entry + 2 * layer).long(), :, slot] = data.to(pool.dtype)
