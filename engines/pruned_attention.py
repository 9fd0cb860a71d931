"""Which layer of a TensorRT-LLM network attends to what: the whole of DyCoke's surgery on Qwen2.

Every layer of TensorRT-LLM's Attention ends in one call of `gpt_attention`, with keywords. While
the network of a model is defined, that call is ours:

    scoring layer s = max(l-1, 0):  DycokeScore -> [all-reduce] -> DycokeSelect: table', lengths'
    layers >= l:  qkv through DycokeRope, and table', lengths' instead of table, lengths
    everything else, and every layer with p = 0: untouched

Layers >= l are built with learned_absolute, which does not rotate: with shortened lengths attention
would rotate to wrong positions. DycokeRope rotates with the true lengths before it. Host tensors
stay the originals: they only size launches and context work, where table' equals table.

With order="importance" DycokeSelect moves K and V of layers >= s. Layers >= l read table', so
they come behind the move. Layer s < l reads the whole table and may run on another stream; a tensor
edge alone orders the two, so DycokeSelect then takes that layer's output, which it does not read.
Without such an order it depends on the scores alone and may run beside layer s.

Followed: tensorrt_llm/layers/attention.py, Attention.forward, of the 1.1 to 1.2 era (its call of
gpt_attention has skip_attn, cp_group and logn_scaling); models/qwen/model.py at 04a2cac.
Nothing here imports TensorRT-LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.config import DyCokeConfig
from ..core.errors import DyCokeError

Call = Mapping[str, Any]  # keywords of one call of gpt_attention


class Nodes(Protocol):
    """Adds plugins to the network. call: of the layer that they belong to."""

    def select(self, call: Call, after: Any | None) -> tuple[Any, Any]:
        """kv_cache_block_offsets' and sequence_length', of the shapes of the originals.

        after: [tokens, ...] of the model's type, there before K and V may move; None: none move.
        """

    def rotate(self, call: Call) -> Any:
        """qkv [tokens, (heads + 2 kv heads) * D], q and k rotated to their positions."""


@dataclass
class PrunedAttention:
    """Stands for `gpt_attention` while one network is defined.

    stock: the function itself. no_rotation: PositionEmbeddingType.learned_absolute.
    """

    stock: Callable[..., Any]
    nodes: Nodes
    config: DyCokeConfig
    layers: int
    no_rotation: Any
    _selected: tuple[Any, Any] | None = field(default=None, init=False)
    _seen: list[int] = field(default_factory=list, init=False)

    def __call__(self, **call: Any) -> Any:
        layer = call["layer_idx"]
        if layer != len(self._seen):
            raise DyCokeError(
                f"gpt_attention came for layer {layer}, expected {len(self._seen)}: this release "
                "of TensorRT-LLM defines networks in another way; use 1.2.1"
            )
        self._seen.append(layer)
        _check(call)
        if layer == self.config.scoring_layer < self.config.l and self.config.order != "raster":
            output, present = self.stock(**call)
            self._selected = self.nodes.select(call, output)
            return output, present
        if layer == self.config.scoring_layer:
            # Layer 0 that is pruned itself comes behind the move in any case.
            after = None if self.config.order == "raster" else call["qkv"]
            self._selected = self.nodes.select(call, after)
        if layer >= self.config.l:
            assert self._selected is not None  # the scoring layer is never behind layer l
            table, lengths = self._selected
            call |= {
                "qkv": self.nodes.rotate(call),
                "kv_cache_block_offsets": table,
                "sequence_length": lengths,
                "position_embedding_type": self.no_rotation,
                "rotary_embedding_dim": 0,
                "rotary_inv_freq": None,
                "rotary_cos_sin": None,
            }
        return self.stock(**call)

    def check_complete(self) -> None:
        """Raises DyCokeError if not every layer came by: then nothing, or too little, is pruned."""
        if len(self._seen) != self.layers:
            raise DyCokeError(
                f"{len(self._seen)} of {self.layers} layers called gpt_attention: this release of "
                "TensorRT-LLM defines networks in another way; use 1.2.1"
            )


def _check(call: Call) -> None:
    """What the plugins need of a layer, whatever the build options were called."""
    needed = (
        "qkv", "rotary_cos_sin", "sequence_length", "context_lengths", "host_request_types",
        "kv_cache_block_offsets", "host_kv_cache_pool_pointers", "host_kv_cache_pool_mapping",
    )  # fmt: skip
    for name in needed:
        if call.get(name) is None:
            raise DyCokeError(
                f"gpt_attention of layer {call['layer_idx']} has no {name}; DyCoke needs a paged "
                "KV cache, packed tokens and RoPE (build with: dycoke build)"
            )
    if call.get("kv_quant_orig_scale") is not None:
        raise DyCokeError("a quantised KV cache is not supported: DyCoke reads K as it is stored")
