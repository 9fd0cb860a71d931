"""Attention over the paged pool on a CPU: copy K and V in order, then torch's fused attention.

The slow and obvious form is core/attention.py. Tables are TensorRT-LLM's, int [S, 2, M].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...arch.spec import DecoderSpec
from ...core.pool import KEY, VALUE, PoolLayout
from ..stages import ATTENTION, SCORE, SELECT
from .pruning import Pruner


class CpuCache:
    """The KV pool of one rank on a CPU, and how prompts and decode steps attend to it."""

    def __init__(
        self,
        config: DecoderSpec,
        num_blocks: int,
        tokens_per_block: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self.layout = PoolLayout(
            num_blocks, config.layers, config.kv_heads, tokens_per_block, config.head_dim
        )
        self.pool = torch.zeros(self.layout.shape, dtype=dtype, device=device)
        half = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
        self._frequencies = config.rope_theta**-half

    def chunk(self, table: Tensor, past: int, count: int) -> PromptChunk:
        return PromptChunk(self, table[0].long(), past, count)

    def rotation(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 [n, 1, D/2], of positions [n]."""
        angle = position.float()[:, None, None] * self._frequencies
        return angle.cos(), angle.sin()

    def rotate(self, qkv: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated query [n, Hq, D], rotated key and value [n, Hkv, D] of qkv [n, Hq + 2 Hkv, D]."""
        heads, kv_heads = self.config.heads, self.config.kv_heads
        cos, sin = rotation
        rotated = qkv[:, : heads + kv_heads].float()
        first, second = rotated.chunk(2, dim=-1)  # NeoX: the halves of the head rotate together
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        turned = turned.to(qkv.dtype)
        return turned[:, :heads], turned[:, heads:], qkv[:, heads + kv_heads :]


class PromptChunk:
    """`Attention` of `count` tokens of one prompt behind `past` others. table: int64 [2, M]."""

    def __init__(self, cache: CpuCache, table: Tensor, past: int, count: int) -> None:
        self._cache, self._table, self._past, self._upto = cache, table, past, past + count
        self._position = torch.arange(past, past + count, device=table.device)
        self._rotation = cache.rotation(self._position)
        self._blocks = -(-self._upto // cache.layout.tokens_per_block)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        pool, table = self._cache.pool, self._table
        query, key, value = self._cache.rotate(qkv, self._rotation)
        write_chunk(pool, table, layer, self._position, key, value)
        if self._past == 0:
            keys, values = key.transpose(0, 1), value.transpose(0, 1)
        else:
            keys, values = (
                gather(pool, table[None], layer, field, self._blocks)[0, :, : self._upto]
                for field in (KEY, VALUE)
            )
        return prefill_attention(query, keys, values, self._past)


class DecodeStep:
    """`Attention` of one token of each of S sequences.

    table: int64 [S, 2, M]; lengths: int64 [S], the fed token included; pruner: None attends to all.
    """

    def __init__(
        self, cache: CpuCache, table: Tensor, lengths: Tensor, pruner: Pruner | None
    ) -> None:
        self._cache, self._table, self._lengths, self._pruner = cache, table, lengths, pruner
        # The true position, whatever layers >= l attend to.
        self._rotation = cache.rotation(lengths - 1)
        self._context = DecodeContext(cache.pool, table, lengths)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        cache, pruner = self._cache, self._pruner
        query, key, value = cache.rotate(qkv, self._rotation)
        if pruner is not None and layer == pruner.scoring_layer:
            # Scored before this layer's own write: the fed token's key comes from the step.
            blocks = -(-int(self._lengths.max()) // cache.layout.tokens_per_block)
            with SCORE:
                keys = gather(cache.pool, self._table, layer, KEY, blocks)
                scored = pruner.score(query, key, keys, self._lengths)
            with SELECT:
                self._selection = pruner.select(scored, self._lengths, cache.pool)
        if pruner is not None and layer == pruner.first_pruned_layer:
            self._context = DecodeContext(cache.pool, *self._selection)
        self._context.write(layer, key, value)
        with ATTENTION:
            return self._context.attend(layer, query)


def gather(pool: Tensor, table: Tensor, layer: int, field: int, blocks: int) -> Tensor:
    """K or V of the first `blocks` blocks of each sequence: [S, kv heads, blocks * B, D].

    pool: [num_blocks, layers, 2, kv heads, B, D].
    """
    _, _, _, kv_heads, size, head_dim = pool.shape
    rows = pool.view(-1, size * head_dim)  # one row per (slab, head): a single copy, in order
    slabs = table[:, None, field, :blocks] + 2 * layer
    heads = torch.arange(kv_heads, device=pool.device)[:, None]
    index = (slabs * kv_heads + heads).flatten()  # [S, kv heads, blocks]
    return rows.index_select(0, index).view(len(table), kv_heads, blocks * size, head_dim)


class DecodeContext:
    """The KV cache of S sequences in one decode step, for every layer that uses the same table.

    table: int64 [S, 2, M]; lengths: int64 [S], tokens attended to, the fed one being the last;
    mask: bool [S, T], T >= every length, False at positions that are left out, or None. Where
    things lie in the pool is worked out once, not in each layer.
    """

    def __init__(
        self, pool: Tensor, table: Tensor, lengths: Tensor, mask: Tensor | None = None
    ) -> None:
        self._pool = pool
        _, _, _, kv_heads, size, dim = pool.shape
        newest = lengths - 1
        column = (newest // size)[:, None, None].expand(-1, 2, 1)
        self._entries = table.gather(2, column)[:, :, 0].T  # [2, S]
        self._slot = newest % size
        heads = torch.arange(kv_heads, device=pool.device)[:, None]
        self._sequences: list[tuple[Tensor, int, Tensor | None]] = []
        for row, length in enumerate(lengths.tolist()):
            slabs = table[row, :, None, : -(-length // size)]
            index = (slabs * kv_heads + heads).flatten(1)  # [2, kv heads * blocks]
            kept = None if mask is None else mask[row, None, None, :length]
            self._sequences.append((index, length, kept))
        # K and V of one sequence and layer. One buffer for all of them: large memory from malloc
        # may come as untouched pages, whose first use costs more than the copy.
        longest = max(index.shape[1] for index, _, _ in self._sequences)
        self._copies = pool.new_empty(2, longest, size * dim)

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Writes the fed tokens' key and value, [S, Hkv, D]."""
        slabs = self._pool.flatten(0, 2)[2 * layer :]
        for field, data in ((KEY, key), (VALUE, value)):
            slabs[self._entries[field], :, self._slot] = data

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """One query token per sequence: [S, Hq, D] -> [S, Hq * D].

        Sequence by sequence: K and V of one are still in the cache when they are used, copies of
        the whole batch would not be, and shorter sequences need no padding. The query heads of a
        group share a KV head, so they stand in as the query's length.
        """
        _, _, _, kv_heads, size, dim = self._pool.shape
        # As in TensorRT-LLM, the layer is an offset of the base; the indices stay the same.
        rows = self._pool.view(-1, size * dim)[2 * layer * kv_heads :]
        grouped = query.view(len(query), kv_heads, -1, dim)
        out = torch.empty_like(grouped)
        for row, (index, length, kept) in enumerate(self._sequences):
            copies = self._copies[:, : index.shape[1]]
            for field in (KEY, VALUE):
                torch.index_select(rows, 0, index[field], out=copies[field])
            keys, values = copies.view(2, 1, kv_heads, -1, dim)[:, :, :, :length]
            out[row] = torch.nn.functional.scaled_dot_product_attention(
                grouped[row, None], keys, values, attn_mask=kept
            )[0]
        return out.flatten(1)


def prefill_attention(query: Tensor, keys: Tensor, values: Tensor, past: int) -> Tensor:
    """Causal attention of one chunk. query: [n, Hq, D]; keys, values: [Hkv, past + n, D].

    Returns [n, Hq * D].
    """
    count, query_heads, head_dim = query.shape
    group = query_heads // keys.shape[0]
    keys = keys.repeat_interleave(group, dim=0)[None]
    values = values.repeat_interleave(group, dim=0)[None]
    heads = query.transpose(0, 1)[None]
    if past == 0:
        mask = None
    else:
        position = torch.arange(past + count, device=query.device)
        mask = position <= position[past:, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        heads, keys, values, attn_mask=mask, is_causal=mask is None
    )
    return out[0].transpose(0, 1).reshape(count, query_heads * head_dim)


def write_chunk(
    pool: Tensor, table: Tensor, layer: int, position: Tensor, key: Tensor, value: Tensor
) -> None:
    """Writes tokens of one sequence. table: int64 [2, M]; position: int64 [n]; key,
    value: [n, Hkv, D]."""
    slabs = pool.flatten(0, 2)
    column, slot = position // pool.shape[4], position % pool.shape[4]
    for field, data in ((KEY, key), (VALUE, value)):
        slabs[table[field, column] + 2 * layer, :, slot] = data
