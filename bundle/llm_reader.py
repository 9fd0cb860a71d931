"""Reads an exported TensorRT-LLM checkpoint directory back, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..arch.spec import DecoderSpec
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from ..cost.dims import LlmDims
from .json_file import read_json
from .llm_layout import check_tp, rank_shapes
from .paths import LLM_CONFIG, rank_weights
from .safetensors_file import SafetensorsFile


@dataclass(frozen=True)
class LlmCheckpoint:
    """An exported LLM: values of config.json, and its tensors on demand.

    config: the file as it is. llm: dimensions and constants. visual_token_base: the first visual
    id, equal to the vocabulary's rows.
    """

    directory: Path
    config: Mapping[str, Any]
    llm: DecoderSpec
    dycoke: DyCokeConfig
    dtype: Dtype
    tp: int
    visual_token_base: int
    _ranks: tuple[SafetensorsFile, ...]

    def names(self) -> tuple[str, ...]:
        """Names of the tensors of every rank (bundle/llm_layout.py)."""
        return tuple(rank_shapes(self.llm.dims, self.tp))

    def tensor(self, name: str, rank: int = 0) -> Tensor:
        """One rank's tensor, in fresh memory."""
        return self._ranks[rank].tensor(name)


def read_llm(directory: Path | str) -> LlmCheckpoint:
    """Opens a directory that `export_llm` wrote; every header is checked, no tensor is read.

    Raises DyCokeError for missing or truncated rank files and what does not fit config.json.
    """
    directory = Path(directory)
    path = directory / LLM_CONFIG
    if not path.is_file():
        raise DyCokeError(f"{directory}: not a TensorRT-LLM checkpoint (no config.json)")
    config = read_json(path)
    try:
        llm = _llm_config(config)
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
    if config.get("architecture") != "Qwen2ForCausalLM" or pp != 1:
        raise DyCokeError(
            f"{path}: architecture={config.get('architecture')!r}, pp_size={pp}; "
            "supported: Qwen2ForCausalLM, pp_size=1"
        )
    check_tp(llm.dims, tp)
    ranks = tuple(_rank(directory, rank, llm.dims, tp, Dtype(dtype)) for rank in range(tp))
    return LlmCheckpoint(directory, config, llm, dycoke, Dtype(dtype), tp, base, ranks)


def _llm_config(config: Mapping[str, Any]) -> DecoderSpec:
    return DecoderSpec(
        dims=LlmDims(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_size"],
            vocab=config["vocab_size"],
            tied_embeddings=config["tie_word_embeddings"],
        ),
        rope_theta=config["rotary_base"],
        rms_norm_eps=config["norm_epsilon"],
        max_positions=config["max_position_embeddings"],
        eos_ids=tuple(config.get("eos_ids", ())),
        pad_id=config.get("pad_id"),
    )


def _rank(directory: Path, rank: int, dims: LlmDims, tp: int, dtype: Dtype) -> SafetensorsFile:
    path = directory / rank_weights(rank)
    if not path.is_file():
        raise DyCokeError(f"{path}: is missing, config.json says tp_size={tp}; export again")
    file = SafetensorsFile(path)
    for name, shape in rank_shapes(dims, tp).items():
        entry = file.entries.get(name)
        found, wanted = entry and (entry.shape, entry.dtype), (shape, dtype.safetensors)
        if found != wanted:
            raise DyCokeError(
                f"{path}: tensor {name} is {found}, config.json asks for {wanted}; export again"
            )
    return file
