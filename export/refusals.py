"""What a checkpoint directory may hold that an export would silently get wrong: weights that are
quantised, adapters that are not merged. Each is refused by its own name, wherever its mark lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..bundle.json_file import read_json
from ..core.errors import DyCokeError

# Keys of config.json (AutoGPTQ, AWQ, bitsandbytes, compressed-tensors and others write the first).
_QUANTISED_KEYS = ("quantization_config", "compression_config", "quant_config", "quantization")
# Files of their own: AutoGPTQ, AutoAWQ, TensorRT Model Optimizer.
_QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# Tensors: GPTQ and AWQ; fp8, compressed-tensors and Model Optimizer; bitsandbytes; MLX.
_QUANTISED_TENSOR = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|weight_(scale|zero_point|packed|shape|format|global_scale)\w*"
    r"|(input|output|k|v)_scale\w*|SCB|(nested_)?(absmax|quant_map)|quant_state\.\w+)$"
)
_ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "non_lora_trainables.bin",  # LLaVA-NeXT's beside a LoRA
)
# PEFT's names: LoRA and its kin, IA3, tuners around a layer.
_ADAPTER_TENSOR = re.compile(
    r"(^|\.)(lora_\w+|ia3_l|hada_\w+|lokr_\w+|vera_\w+|oft_\w+|base_layer|modules_to_save"
    r"|original_module|base_model)(\.|$)"
)


def refuse_adapters(directory: Path) -> None:
    """Raises DyCokeError where an adapter lies in the directory, with or without its base."""
    present = [name for name in _ADAPTER_FILES if (directory / name).is_file()]
    if not present:
        return
    base = None
    if (path := directory / "adapter_config.json").is_file():
        base = read_json(path).get("base_model_name_or_path")
    alone = not any(directory.glob("model*.safetensors"))
    what = "an adapter, not a checkpoint" if alone else "a checkpoint with an adapter beside it"
    raise DyCokeError(
        f"{directory}: {what} ({present[0]}{f', for {base}' if base else ''}); merge the adapter "
        "into its base first (PEFT: merge_and_unload, then save_pretrained) and export the result"
    )


def refuse_quantised(directory: Path, config: Mapping[str, Any]) -> None:
    """Raises DyCokeError where config.json, or a file beside it, says that weights are quantised.

    config: config.json, whose sections are searched too.
    """
    sections = {"": config} | {
        f"{name}.": value for name, value in config.items() if isinstance(value, Mapping)
    }
    for prefix, section in sections.items():
        for key in _QUANTISED_KEYS:
            if value := section.get(key):
                method = value.get("quant_method") if isinstance(value, Mapping) else value
                raise _quantised(directory / "config.json", f"{prefix}{key}", method)
    for name in _QUANTISED_FILES:
        if (directory / name).is_file():
            raise _quantised(directory, name, None)


def refuse_tensors(path: Path, names: Iterable[str]) -> None:
    """Raises DyCokeError where a tensor's name is that of a quantised weight or of an adapter."""
    for name in names:
        if _ADAPTER_TENSOR.search(name):
            raise DyCokeError(
                f"{path}: tensor {name} is an adapter's; adapters have to be merged before the "
                "export (PEFT: merge_and_unload, then save_pretrained)"
            )
        if _QUANTISED_TENSOR.search(name):
            raise _quantised(path, f"tensor {name}", None)


def _quantised(path: Path, mark: str, method: Any) -> DyCokeError:
    shown = f" ({method})" if method else ""
    return DyCokeError(
        f"{path}: {mark}{shown}: the weights are quantised, which is not supported; export from "
        "the unquantised checkpoint"
    )
