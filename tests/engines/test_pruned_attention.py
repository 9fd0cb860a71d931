"""Which layer gets which table: our own logic, driven as a network definition drives it.

What calls it here stands for the order of calls alone; it is no TensorRT-LLM, which has not run it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.engines.llm_nodes import keep_table
from dycoke_trt.engines.pruned_attention import PrunedAttention
from dycoke_trt.engines.refusals import refuse

LAYERS = 5


class Recorder:
    """Nodes and stock attention in one: writes down what each was given."""

    def __init__(self) -> None:
        self.attended: list[dict[str, Any]] = []
        self.selected: list[str] = []
        self.after: list[str | None] = []
        self.order: list[str] = []  # in which nodes came to the network

    def select(self, call: Any, after: str | None) -> tuple[str, str]:
        assert call == layer_call(call["layer_idx"])  # nothing of the shortened table
        self.selected.append(call["qkv"])
        self.after.append(after)
        self.order.append("select")
        return "table'", "lengths'"

    def rotate(self, call: Any) -> str:
        assert call["sequence_length"] == "lengths"  # the true ones
        assert call["rotary_cos_sin"] == "cos_sin"
        return f"rotated {call['qkv']}"

    def stock(self, **call: Any) -> tuple[str, None]:
        self.attended.append(call)
        self.order.append(f"attention {call['layer_idx']}")
        return f"context {call['layer_idx']}", None


def layer_call(layer: int) -> dict[str, Any]:
    return {
        "layer_idx": layer, "qkv": f"qkv{layer}", "sequence_length": "lengths",
        "context_lengths": "context", "kv_cache_block_offsets": "table",
        "host_request_types": "types", "host_kv_cache_pool_pointers": "pools",
        "host_kv_cache_pool_mapping": "mapping", "host_kv_cache_block_offsets": "host table",
        "position_embedding_type": "rope", "rotary_embedding_dim": 64, "rotary_inv_freq": "freq",
        "rotary_cos_sin": "cos_sin", "kv_quant_orig_scale": None,
    }  # fmt: skip


def define(config: DyCokeConfig) -> Recorder:
    recorder = Recorder()
    attention = PrunedAttention(recorder.stock, recorder, config, LAYERS, "absolute")
    for layer in range(LAYERS):
        assert attention(**layer_call(layer)) == (f"context {layer}", None)
    attention.check_complete()
    return recorder


@pytest.mark.parametrize("order", ["raster", "importance"])
@pytest.mark.parametrize("l", range(LAYERS))
def test_layers_from_l_on_attend_to_the_selection(l: int, order: str) -> None:
    recorder = define(DyCokeConfig.from_dict({"l": l, "order": order}))
    assert recorder.selected == [f"qkv{max(l - 1, 0)}"]  # once, by the scoring layer
    for layer, call in enumerate(recorder.attended):
        untouched = layer_call(layer)
        if layer < l:
            assert call == untouched
            continue
        assert call == untouched | {
            "qkv": f"rotated qkv{layer}", "kv_cache_block_offsets": "table'",
            "sequence_length": "lengths'", "position_embedding_type": "absolute",
            "rotary_embedding_dim": 0, "rotary_inv_freq": None, "rotary_cos_sin": None,
        }  # fmt: skip


@pytest.mark.parametrize("l", range(LAYERS))
def test_keys_move_behind_the_layer_that_reads_the_whole_table(l: int) -> None:
    """A tensor edge from the scoring layer's output, where that layer is not pruned itself; an
    order that moves nothing waits for nothing."""
    scoring = max(l - 1, 0)
    moving = define(DyCokeConfig(l=l, order="importance"))
    place = moving.order.index("select")
    if l == 0:  # layer 0 reads the new table, so it comes behind the move as it is
        assert (moving.after, place) == (["qkv0"], 0)
    else:
        assert moving.after == [f"context {scoring}"]
        assert moving.order[place - 1 : place + 2] == [
            f"attention {scoring}", "select", f"attention {l}"
        ]  # fmt: skip
    still = define(DyCokeConfig(l=l, memory=0.5))
    assert still.after == [None]
    assert still.order.index("select") == still.order.index(f"attention {scoring}") - 1


def test_networks_that_are_defined_otherwise_are_refused() -> None:
    recorder = Recorder()
    attention = PrunedAttention(recorder.stock, recorder, DyCokeConfig(), LAYERS, "absolute")
    attention(**layer_call(0))
    with pytest.raises(DyCokeError, match="for layer 2, expected 1"):
        attention(**layer_call(2))
    with pytest.raises(DyCokeError, match="1 of 5 layers"):
        attention.check_complete()
    with pytest.raises(DyCokeError, match="layer 1 has no rotary_cos_sin"):
        attention(**layer_call(1) | {"rotary_cos_sin": None})
    attention = PrunedAttention(recorder.stock, recorder, DyCokeConfig(), LAYERS, "absolute")
    with pytest.raises(DyCokeError, match="quantised KV cache"):
        attention(**layer_call(0) | {"kv_quant_orig_scale": "scale"})


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("enable_kv_cache_reuse", "true", "false"),
        ("max_beam_width", 2, 1),
        ("pp_size", 2, 1),
        ("max_draft_len", 4, 0),
        ("speculative_decoding_mode", "medusa", None),
        ("max_attention_window_size", 4096, None),
        ("streamingllm", True, False),
        ("batch_scheduler_policy", "max_utilization", "guaranteed_no_evict"),
        ("granularity", "token", "block"),
    ],
)
def test_refusals(name: str, value: object, good: object) -> None:
    refuse({name: good, "max_batch_size": 64}, where="here")
    with pytest.raises(DyCokeError) as caught:
        refuse({name: value}, where="here")
    assert str(caught.value).startswith(f"here: {name}={value} does not go with DyCoke")
    assert "\n" not in str(caught.value)


def test_counts_kept() -> None:
    table = keep_table(0.7, 640, 32)
    assert (table.dtype, len(table)) == (np.int32, 20 + 64 + 1)
    assert (table[0], table[10], table[45]) == (0, 3, 14)
