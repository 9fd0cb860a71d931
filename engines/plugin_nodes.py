"""The three plugins as networks see them: names, and inputs in order.

The other side is engines/plugin/ (score.cpp, select.cpp, rope.cpp), the fields are in
engines/plugin_fields.py. Whatever changes in any of these changes
PLUGIN_ABI (runtime/trtllm/plugin.py).
"""

from __future__ import annotations

NAMESPACE = "dycoke"
SCORE, SELECT, ROPE = "DycokeScore", "DycokeSelect", "DycokeRope"
KERNELS = "DYCOKE_KERNELS"  # environment of trtllm-build: the bundle's kernels/
INTERFACE = "DYCOKE_PLUGIN_INTERFACE"  # environment of trtllm-build: v3 or v2

_POOL = ("host_kv_cache_pool_pointers", "host_kv_cache_pool_mapping")
ROPE_INPUTS = ("qkv", "cos_sin", "sequence_length", "context_lengths", "host_request_types")
SCORE_INPUTS = (
    "qkv", "cos_sin", "sequence_length", "kv_cache_block_offsets", "host_request_types", *_POOL
)  # fmt: skip
# Then what DycokeScore gives: logits, maxima and sums, or on several ranks the reduced scores. With
# an order of importance one more, which is not read: what must be there before K and V may move.
SELECT_INPUTS = (
    "input_ids", "sequence_length", "context_lengths", "kv_cache_block_offsets", "keep_table",
    "host_request_types", *_POOL,
)  # fmt: skip
