"""Qwen2 with DyCoke for TensorRT-LLM, the class that trtllm-build takes by --model_cls_file.

Imported where TensorRT-LLM is installed, and nowhere else; a build writes a file that imports it
from here. Weights, names and checkpoint are those of the stock class: the plugins have none.

Followed: tensorrt_llm/models/qwen/model.py (04a2cac), models/modeling_utils.py (01ea6d7),
builder.py (008b2b8, before 1.2), commands/build.py (65f1d15), plugin/plugin.py (c20322f), to be
read again on 1.2.1. Tests run this class in 0.17's files (docs/tensorrt.md).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tensorrt_llm.layers.attention as attention
from tensorrt_llm._common import default_net
from tensorrt_llm.functional import PositionEmbeddingType
from tensorrt_llm.models.qwen.model import QWenForCausalLM

from ..core.config import DyCokeConfig
from ..core.errors import DyCokeError
from ..runtime.trtllm.plugin import load_plugins
from .llm_nodes import PluginNodes
from .plugin_interfaces import V3, check_interface
from .plugin_library import plugin_library
from .plugin_nodes import INTERFACE, KERNELS
from .pruned_attention import PrunedAttention
from .refusals import refuse


class DycokeQwen2ForCausalLM(QWenForCausalLM):  # type: ignore[misc]
    """config: as exported, with `dycoke` and `visual_token_base`. With p = 0: the stock class."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.dycoke = DyCokeConfig.from_dict(config.dycoke)
        if self.dycoke.p > 0:
            mapping = config.mapping
            refuse({"pp_size": mapping.pp_size, "cp_size": mapping.cp_size}, where="mapping")
            refuse(self.dycoke.to_dict(), where="config.json")
            self.dycoke.check_layers(config.num_hidden_layers)
            if KERNELS not in os.environ:
                raise DyCokeError(f"{KERNELS} is not set: name the bundle's kernels/ with it")
            load_plugins(plugin_library())

    def prepare_inputs(self, *args: Any, **options: Any) -> Any:
        """builder.build passes limits by keyword; the last place that sees them before forward."""
        if self.dycoke.p > 0:
            flags = default_net().plugin_config
            wanted = {**options, "streamingllm": getattr(flags, "streamingllm", False)}
            refuse(wanted, where="trtllm-build")
            if not options.get("prompt_embedding_table_size"):
                raise DyCokeError("trtllm-build: --max_multimodal_len is 0; a video needs rows")
            self._max_seq_len = int(options["max_seq_len"])
        return super().prepare_inputs(*args, **options)

    def forward(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.dycoke.p == 0:
            return super().forward(input_ids, *args, **kwargs)
        config, mapping = self.config, self.config.mapping
        nodes = PluginNodes(
            self.dycoke,
            Path(os.environ[KERNELS]),
            input_ids,
            layers=config.num_hidden_layers,
            visual_base=config.visual_token_base,
            tokens_per_block=int(default_net().plugin_config.tokens_per_block),
            max_seq_len=self._max_seq_len,
            tp_group=list(mapping.tp_group) if mapping.tp_size > 1 else None,
            interface=check_interface(os.environ.get(INTERFACE, V3)),
        )
        stock = attention.gpt_attention
        pruned = PrunedAttention(
            stock,
            nodes,
            self.dycoke,
            config.num_hidden_layers,
            PositionEmbeddingType.learned_absolute,
        )
        attention.gpt_attention = pruned
        try:
            outputs = super().forward(input_ids, *args, **kwargs)
        finally:
            attention.gpt_attention = stock
        pruned.check_complete()
        return outputs
