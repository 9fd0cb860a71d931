"""The three plugins as networks and engine records see them: names, inputs in order, fields.

The other side is engines/plugin/ (score.cpp, select.cpp, rope.cpp): the order of inputs and the
names of fields here are those of its nodes. Whatever changes there changes PLUGIN_ABI.
"""

from __future__ import annotations

from typing import Any

from ..core.config import DyCokeConfig, GateMode

PLUGIN_ABI = 1  # of names, inputs, fields and image format; recorded with every engine
LIBRARY = "libdycoke_plugins.so"
INIT = "initDycokePlugins"
NAMESPACE, VERSION = "dycoke", "1"
SCORE, SELECT, ROPE = "DycokeScore", "DycokeSelect", "DycokeRope"
AUTOREGISTER = "DYCOKE_AUTOREGISTER"  # environment: register when preloaded into a server
COUNTERS = "DYCOKE_COUNTERS_FILE"  # environment: where decisions are counted; %p is the process

_HOST_POOL = ("host_kv_cache_pool_pointers", "host_kv_cache_pool_mapping")
ROPE_INPUTS = ("qkv", "cos_sin", "sequence_length", "context_lengths", "host_request_types")
SCORE_INPUTS = (
    "qkv", "cos_sin", "sequence_length", "kv_cache_block_offsets", "host_request_types", *_HOST_POOL
)  # fmt: skip
SELECT_INPUTS = (
    "input_ids",
    "sequence_length",
    "context_lengths",
    "kv_cache_block_offsets",
    "keep_table",
    "host_request_types",
    *_HOST_POOL,
)  # fmt: skip; then logits, maxima, sums, or the scores summed over ranks
SPLITS = 8  # parts of a sequence in the scoring launch: enough programs at batch 1
_GATES: dict[GateMode, int] = {"reuse": 0, "full": 1, "always": 2, "once": 3}


def score_fields(config: DyCokeConfig, ranks: int) -> dict[str, Any]:
    """layer: 0-based, of the scores. Fields of type int32 are ints, of float32 floats."""
    return {"layer": config.scoring_layer, "splits": SPLITS, "ranks": ranks}


def select_fields(config: DyCokeConfig, visual_base: int) -> dict[str, Any]:
    """visual_base: ids from there on are visual tokens. `block_bytes`, an int64, is added with the
    pool's dimensions."""
    return {
        "visual_base": visual_base,
        "mode": _GATES[config.gate],
        "reduce_max": int(config.block_reduce == "max"),
        "threshold": float(config.gate_threshold),
    }
