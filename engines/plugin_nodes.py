"""The three plugins as networks, servers and records see them: names, and inputs in order.

The other side is engines/plugin/ (score.cpp, select.cpp, rope.cpp), the fields are in
engines/plugin_fields.py. Whatever changes in any of these changes PLUGIN_ABI.
"""

from __future__ import annotations

PLUGIN_ABI = 2  # of names, inputs, fields and image format; recorded with every engine
LIBRARY = "libdycoke_plugins.so"  # as it lies beside an engine
INIT = "initDycokePlugins"
NAMESPACE = "dycoke"
SCORE, SELECT, ROPE = "DycokeScore", "DycokeSelect", "DycokeRope"
AUTOREGISTER = "DYCOKE_AUTOREGISTER"  # environment: register when preloaded into a server
KERNELS = "DYCOKE_KERNELS"  # environment of trtllm-build: the bundle's kernels/
INTERFACE = "DYCOKE_PLUGIN_INTERFACE"  # environment of trtllm-build: v3 or v2
COUNTERS = "DYCOKE_COUNTERS_FILE"  # environment: where decisions are counted; %p is the process

_POOL = ("host_kv_cache_pool_pointers", "host_kv_cache_pool_mapping")
ROPE_INPUTS = ("qkv", "cos_sin", "sequence_length", "context_lengths", "host_request_types")
SCORE_INPUTS = (
    "qkv", "cos_sin", "sequence_length", "kv_cache_block_offsets", "host_request_types", *_POOL
)  # fmt: skip
# Then what DycokeScore gives: logits, maxima and sums, or on several ranks the reduced scores.
SELECT_INPUTS = (
    "input_ids", "sequence_length", "context_lengths", "kv_cache_block_offsets", "keep_table",
    "host_request_types", *_POOL,
)  # fmt: skip
