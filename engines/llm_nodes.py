"""Adds the plugins to a TensorRT-LLM network. Runs where TensorRT-LLM is installed.

As models/eagle/model.py does: the plugin added to default_trtnet(), then _create_tensor for each
output of its layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..core.config import DyCokeConfig
from ..core.counts import blocks_kept
from .plugin_fields import rope_fields, score_fields, select_fields
from .plugin_interfaces import add_plugin, create_plugin
from .plugin_nodes import ROPE, ROPE_INPUTS, SCORE, SCORE_INPUTS, SELECT, SELECT_INPUTS
from .pruned_attention import Call

# Tables may be wider than the longest sequence needs; an entry per possible count of blocks.
_SPARE_BLOCKS = 64


def keep_table(p: float, max_seq_len: int, tokens_per_block: int) -> np.ndarray[Any, Any]:
    """int32: entry n is how many of n prunable blocks are kept; device code never sees p."""
    most = -(-max_seq_len // tokens_per_block) + _SPARE_BLOCKS
    return np.array([blocks_kept(n, p) for n in range(most + 1)], np.int32)


class PluginNodes:
    """The plugins of one network (see pruned_attention.Nodes).

    input_ids: the network's input, whose ids from visual_base on are visual tokens. tp_group: ranks
    that share the heads, None for one. interface: of the plugins (plugin_interfaces.py).
    """

    def __init__(
        self,
        config: DyCokeConfig,
        kernels: Path,
        input_ids: Any,
        *,
        layers: int,
        visual_base: int,
        tokens_per_block: int,
        max_seq_len: int,
        tp_group: list[int] | None,
        interface: str,
    ) -> None:
        from tensorrt_llm.functional import constant

        self._score = score_fields(kernels, tokens_per_block, layer=config.scoring_layer)
        self._select = select_fields(
            kernels, tokens_per_block, config, layers=layers, visual_base=visual_base
        )
        self._rope = rope_fields(kernels)
        self._tp_group = tp_group
        self._interface = interface
        self._extra = {
            "input_ids": input_ids,
            "keep_table": constant(keep_table(config.p, max_seq_len, tokens_per_block)),
        }

    def select(self, call: Call, after: Any | None) -> tuple[Any, Any]:
        scores = self._add(SCORE, self._score, self._inputs(SCORE_INPUTS, call))
        if self._tp_group is not None:
            scores = [_sum_over_ranks(scores[0], self._tp_group)]
        inputs = [*self._inputs(SELECT_INPUTS, call), *scores, *([] if after is None else [after])]
        table, lengths = self._add(SELECT, self._select, inputs)
        return table, lengths

    def rotate(self, call: Call) -> Any:
        return self._add(ROPE, self._rope, self._inputs(ROPE_INPUTS, call))[0]

    def _inputs(self, names: tuple[str, ...], call: Call) -> list[Any]:
        known = {**call, **self._extra, "cos_sin": call["rotary_cos_sin"]}
        return [known[name] for name in names]

    def _add(self, name: str, fields: Mapping[str, Any], inputs: list[Any]) -> list[Any]:
        import tensorrt as trt
        from tensorrt_llm._common import default_trtnet
        from tensorrt_llm.functional import _create_tensor

        plugin = create_plugin(trt, self._interface, name, fields)
        tensors = [tensor.trt_tensor for tensor in inputs]
        layer = add_plugin(default_trtnet(), self._interface, tensors, plugin)
        return [_create_tensor(layer.get_output(i), layer) for i in range(layer.num_outputs)]


def _sum_over_ranks(scores: Any, group: list[int]) -> Any:
    """fp32 scores [S, T], summed over the ranks by NCCL: custom kernels have buffers for
    activations, not for these shapes."""
    from tensorrt_llm.functional import AllReduceParams, AllReduceStrategy, allreduce

    with _reducing_in("float32"):
        return allreduce(
            scores, group, all_reduce_params=AllReduceParams(strategy=AllReduceStrategy.NCCL)
        )


@contextmanager
def _reducing_in(dtype: str) -> Iterator[None]:
    """functional.allreduce casts to plugin_config.nccl_plugin, which is the model's dtype: scores
    in bfloat16 would rank otherwise than on one GPU."""
    from tensorrt_llm._common import default_net

    options = default_net().plugin_config
    before = options.nccl_plugin
    options.nccl_plugin = dtype
    try:
        yield
    finally:
        options.nccl_plugin = before
