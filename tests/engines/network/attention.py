"""What the GPTAttention plugin computes, one row at a time, from its documentation and sources.

Paged KV cache, packed tokens, prompts (in chunks) before decoding rows, RoPE (rope_gpt_neox) or no
rotation (learned_absolute). Followed: cpp/tensorrt_llm/plugins/gptAttentionPlugin and
kernels/unfusedAttentionKernels of the 1.2 era: keys are stored rotated; the new token of a decoding
row goes to slot sequence_length - 1 of the table, and its position is that too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dycoke_trt.tests.engines.network.recording import RecordedLayer
from torch import Tensor

LEARNED_ABSOLUTE, ROPE_GPT_NEOX = 0, 2  # PositionEmbeddingType
CONTEXT, GENERATION = 0, 1  # host_request_types
# In the order of the plugin, for paged KV and packed tokens.
INPUTS = (
    "qkv", "sequence_length", "host_past_key_value_lengths", "host_max_attention_window_sizes",
    "host_sink_token_length", "context_lengths", "cache_indirection", "host_request_types",
    "kv_cache_block_offsets", "host_kv_cache_block_offsets", "host_kv_cache_pool_pointers",
    "host_kv_cache_pool_mapping",
)  # fmt: skip
ROTARY_INPUTS = ("rotary_inv_freq", "rotary_cos_sin")
LAST_INPUTS = ("host_context_lengths", "host_runtime_perf_knobs", "host_context_progress")


@dataclass
class PagedAttention:
    """pool: [blocks, layers, 2, kv heads, B, D], where host_kv_cache_pool_pointers point to."""

    pool: Tensor

    def __call__(self, layer: RecordedLayer, inputs: list[Tensor]) -> list[Tensor]:
        fields = {name: array.item() for name, array in layer.values.items() if array.size == 1}
        rotates = fields["rotary_embedding_dim"] > 0
        names = (*INPUTS, *(ROTARY_INPUTS if rotates else ()), *LAST_INPUTS)
        given = dict(zip(names, inputs, strict=True))
        heads, kv_heads, size = (fields[n] for n in ("num_heads", "num_kv_heads", "head_size"))
        assert fields["tokens_per_block"] == self.pool.shape[4]
        assert fields["paged_kv_cache"]
        assert fields["remove_input_padding"]
        kind = fields["position_embedding_type"]
        assert kind == (ROPE_GPT_NEOX if rotates else LEARNED_ABSOLUTE)
        assert int(given["host_kv_cache_pool_pointers"][0, 0]) == self.pool.data_ptr()
        in_pool = int(given["host_kv_cache_pool_mapping"][fields["layer_idx"], 1])
        # Entries count slabs of K or V of one layer: [block][layer][K, V].
        slabs = self.pool.flatten(0, 2)

        qkv = given["qkv"].unflatten(-1, (heads + 2 * kv_heads, size))
        types = given["host_request_types"].tolist()
        assert types == sorted(types), "prompts come first"
        out = torch.empty(len(qkv), heads, size)
        first = 0
        for row, type_ in enumerate(types):
            length = int(given["sequence_length"][row])
            if type_ == CONTEXT:
                count = int(given["host_context_lengths"][row])
                assert count == int(given["context_lengths"][row])
                table = given["host_kv_cache_block_offsets"][0, row]
            else:
                count = 1
                table = given["kv_cache_block_offsets"][0, row]
                # Launches are sized by it: too long is slow, too short is wrong.
                assert int(given["host_past_key_value_lengths"][row]) >= length - 1
            q, k, v = qkv[first : first + count].split((heads, kv_heads, kv_heads), dim=1)
            position = torch.arange(length - count, length)
            if rotates:
                angles = given["rotary_cos_sin"].reshape(-1, size // 2, 2)[position]
                q, k = _rotated(q, angles), _rotated(k, angles)
            block, slot = position // self.pool.shape[4], position % self.pool.shape[4]
            for field, new in enumerate((k, v)):
                slabs[table[field, block].long() + 2 * in_pool, :, slot] = new
            every = torch.arange(length)
            block, slot = every // self.pool.shape[4], every % self.pool.shape[4]
            keys, values = (
                slabs[table[field, block].long() + 2 * in_pool, :, slot] for field in (0, 1)
            )
            seen = every[None] <= position[:, None]
            scale = 1 / (size**0.5 * fields["q_scaling"])
            out[first : first + count] = _attend(q, keys, values, seen, scale)
            first += count
        assert first == len(qkv)
        return [out.flatten(1)]


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x [tokens, heads, D]; angles [tokens, D/2, 2] of (cos, sin)."""
    cos, sin = angles[:, None].unbind(-1)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """q [n, heads, D]; keys, values [t, kv heads, D]; seen [n, t] -> [n, heads, D]."""
    group = q.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    logits = torch.einsum("nhd,thd->hnt", q, keys) * scale
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hnt,thd->nhd", weights, values)
