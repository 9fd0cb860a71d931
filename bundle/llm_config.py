"""config.json of a TensorRT-LLM checkpoint: the decoder's description, written and read.

vocab_size is the number of embedding rows; ids from there on are visual tokens. lm_head is padded
to a multiple of tp beyond it: logits of those rows mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arch.spec import DecoderSpec
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from .json_file import read_json
from .llm_layout import check_tp
from .paths import LLM_CONFIG

_ARCHITECTURE = "Qwen2ForCausalLM"


@dataclass(frozen=True)
class LlmConfig:
    """What an LLM was exported as. visual_token_base: the first visual id."""

    llm: DecoderSpec
    dycoke: DyCokeConfig
    dtype: Dtype
    tp: int
    visual_token_base: int


def llm_config_json(
    llm: DecoderSpec, dycoke: DyCokeConfig, dtype: Dtype, tp: int
) -> dict[str, Any]:
    """TensorRT-LLM's fields, and ours: `dycoke`, `visual_token_base`, `eos_ids`, `pad_id`."""
    return {
        "architecture": _ARCHITECTURE,
        "dtype": dtype,
        "logits_dtype": Dtype.FP32,
        "num_hidden_layers": llm.layers,
        "num_attention_heads": llm.heads,
        "num_key_value_heads": llm.kv_heads,
        "head_size": llm.head_dim,
        "hidden_size": llm.hidden,
        "intermediate_size": llm.intermediate,
        "vocab_size": llm.vocab,
        "norm_epsilon": llm.rms_norm_eps,
        "hidden_act": "silu",
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": llm.max_positions,
        "rotary_base": llm.rope_theta,
        "rotary_scaling": None,
        "attn_bias": True,
        "mlp_bias": False,
        "qwen_type": "qwen2",
        "tie_word_embeddings": llm.tied_embeddings,
        "seq_length": llm.max_positions,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "disable_weight_only_quant_plugin": False,
        "use_logn_attn": False,
        "mapping": {"world_size": tp, "tp_size": tp, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "dycoke": dycoke.to_dict(),
        "visual_token_base": llm.vocab,
        "eos_ids": list(llm.eos_ids),
        "pad_id": llm.pad_id,
    }


def read_llm_config(directory: Path) -> LlmConfig:
    """Of the checkpoint in `directory`. Raises DyCokeError for what is none that we export."""
    path = directory / LLM_CONFIG
    if not path.is_file():
        raise DyCokeError(f"{directory}: not a TensorRT-LLM checkpoint (no {LLM_CONFIG})")
    config = read_json(path)
    try:
        llm = DecoderSpec(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_size"],
            vocab=config["vocab_size"],
            tied_embeddings=config["tie_word_embeddings"],
            rope_theta=config["rotary_base"],
            rms_norm_eps=config["norm_epsilon"],
            max_positions=config["max_position_embeddings"],
            eos_ids=tuple(config.get("eos_ids", ())),
            pad_id=config.get("pad_id"),
        )
        tp, pp = int(config["mapping"]["tp_size"]), int(config["mapping"]["pp_size"])
        base, dtype = int(config["visual_token_base"]), config["dtype"]
        dycoke = DyCokeConfig.from_dict(config["dycoke"])
    except (KeyError, TypeError) as error:
        raise DyCokeError(
            f"{path}: field {error} is missing or not supported; export again"
        ) from None
    if dtype not in list(Dtype):
        raise DyCokeError(
            f"{path}: dtype={dtype!r} is not supported; allowed: {', '.join(Dtype)}; export again"
        )
    if config.get("architecture") != _ARCHITECTURE or pp != 1:
        raise DyCokeError(
            f"{path}: architecture={config.get('architecture')!r}, pp_size={pp}; "
            f"supported: {_ARCHITECTURE}, pp_size=1"
        )
    check_tp(llm, tp)
    return LlmConfig(llm, dycoke, Dtype(dtype), tp, base)
