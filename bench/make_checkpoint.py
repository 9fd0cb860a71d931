"""Writes a LLaVA-OneVision checkpoint with the real shapes and random weights.

    python -m dycoke_trt.bench.make_checkpoint OUT --model llava-ov-7b

It is for measuring memory and time of an export where no published weights are at hand. The format
is Hugging Face's, with the key names of transformers 4, and complete: the tokenizer is the demo
model's (ids beyond it have no text), processors and chat template are those of published
checkpoints, sized for the tower. Tensors are drawn and written in pieces of
at most 64 MiB, shard by shard, so memory does not grow with the model.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arch.spec import TowerSpec
from ..bundle.atomic import atomic_directory
from ..bundle.safetensors_file import CHUNK_BYTES, TensorPlan, write_safetensors
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from ..cost.dims import PRESETS, LlmDims, ModelDims, VisionDims, preset
from ..demo import MODEL_DIR
from ..demo.network import PROCESSOR_FILES
from ..export.names import hub_name, llm_shapes, vision_shapes

SHARD_BYTES = 4 << 30
# What published checkpoints render: role, images, videos, a line, the text, no line after an end.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' ~ message.role ~ ' ' }}"
    "{%- for kind in ('image', 'video') -%}"
    "{%- for part in message.content | selectattr('type', 'equalto', kind) -%}"
    "{{ '<' ~ kind ~ '>' }}{%- endfor -%}"
    "{%- endfor -%}"
    "{%- for part in message.content if part.type == 'text' -%}"
    "{%- if message.role == 'assistant' -%}"
    "{% generation %}{{ '\n' ~ part.text }}{% endgeneration %}"
    "{%- else -%}{{ '\n' ~ part.text }}{%- endif -%}"
    "{%- endfor -%}{{ '<|im_end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def make_checkpoint(
    directory: Path,
    dims: ModelDims,
    dtype: Dtype = Dtype.BF16,
    *,
    heads: int = 16,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Writes the new directory `directory`; returns the bytes of all tensors.

    heads: of the vision tower. Raises DyCokeError if `directory` exists with something in it, and
    for a vocabulary that the tokenizer does not fit into.
    """
    if dims.llm.vocab <= max(_special_ids().values()):
        raise DyCokeError(
            f"vocab={dims.llm.vocab} is not allowed; allowed: more than "
            f"{max(_special_ids().values())}, the tokenizer's last id"
        )
    vision = TowerSpec(
        **asdict(dims.vision),
        heads=heads,
        image_size=_image_size(dims),
        layer_norm_eps=1e-6,
        tanh_gelu=True,
    )
    shapes = {**llm_shapes(dims.llm), **vision_shapes(vision, dims.llm.hidden)}
    if not dims.llm.tied_embeddings:
        shapes["llm.lm_head.weight"] = shapes["llm.embed_tokens.weight"]
    generator = torch.Generator().manual_seed(seed)
    plans = [
        TensorPlan(
            hub_name(name), shape, dtype.torch, partial(_draw, name, shape, dtype.torch, generator)
        )
        for name, shape in shapes.items()
    ]
    shards = _split(plans, shard_bytes)
    weight_map: dict[str, str] = {}
    with atomic_directory(directory) as stage:
        for i, shard in enumerate(shards, 1):
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
            write_safetensors(stage / file, shard)
            weight_map |= {plan.name: file for plan in shard}
        total = sum(plan.bytes for plan in plans)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (stage / "model.safetensors.index.json").write_text(json.dumps(index))
        _write_json(stage / "config.json", _config(dims, vision, dtype))
        _write_processors(stage, vision)
    return total


def make_servable(directory: Path, llm: LlmDims) -> None:
    """A tower of the demo model's size and a language model of another, in fp32: what a server
    costs and how it behaves depends on shapes, while a vision tower of the real size would take
    minutes per video on a CPU.
    """
    vision = VisionDims(layers=4, hidden=96, intermediate=288, patch=8, patches_per_side=12)
    make_checkpoint(directory, ModelDims("servable", llm, vision), Dtype.FP32, heads=3)


def _write_processors(directory: Path, vision: TowerSpec) -> None:
    """Tokenizer, chat template, and what turns images and videos into pixels."""
    for name in _TOKENIZER:
        shutil.copyfile(MODEL_DIR / name, directory / name)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    ids = _special_ids()
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": pad, "eos_token_id": [end, pad], "pad_token_id": pad},
    )
    sized = {
        "num_image_tokens": vision.patches,
        "size": {"height": vision.image_size, "width": vision.image_size},
        "image_grid_pinpoints": _pinpoints(vision.image_size),
    }
    for name in PROCESSOR_FILES:
        values = json.loads((MODEL_DIR / name).read_text())
        values |= {key: value for key, value in sized.items() if key in values}
        _write_json(directory / name, values)


def _special_ids() -> dict[str, int]:
    added = json.loads((MODEL_DIR / "tokenizer.json").read_text())["added_tokens"]
    return {token["content"]: token["id"] for token in added}


def _pinpoints(side: int) -> list[list[int]]:
    """Grids of up to 6 x 6 images, as in published checkpoints."""
    return [[side * rows, side * columns] for rows in range(1, 7) for columns in range(1, 7)]


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _draw(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Iterator[Tensor]:
    """Norm weights are one, all else normal with a standard deviation of 1/sqrt(last dimension)."""
    total, step = math.prod(shape), CHUNK_BYTES // 4
    for start in range(0, total, step):
        count = min(step, total - start)
        if "norm" in name and name.endswith("weight"):
            yield torch.ones(count, dtype=dtype)
        else:
            drawn = torch.randn(count, generator=generator) * shape[-1] ** -0.5
            yield drawn.to(dtype)


def _split(plans: list[TensorPlan], limit: int) -> list[list[TensorPlan]]:
    """Consecutive groups of at most `limit` bytes, at least one tensor each."""
    shards: list[list[TensorPlan]] = []
    room = 0
    for plan in plans:
        if not shards or plan.bytes > room:
            shards.append([])
            room = limit
        shards[-1].append(plan)
        room -= plan.bytes
    return shards


def _image_size(dims: ModelDims) -> int:
    """What the patches cover; 384 for the real tower, whose 27 patches of 14 cover 378."""
    covered = dims.vision.patches_per_side * dims.vision.patch
    return 384 if covered == 378 else covered


def _config(dims: ModelDims, vision: TowerSpec, dtype: Dtype) -> Mapping[str, Any]:
    ids = _special_ids()
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "torch_dtype": dtype,
        "image_token_index": ids["<image>"],
        "video_token_index": ids["<video>"],
        "image_grid_pinpoints": _pinpoints(vision.image_size),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": dims.llm.tied_embeddings,
        "text_config": _text_config(dims.llm),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": dims.vision.hidden,
            "intermediate_size": dims.vision.intermediate,
            "num_hidden_layers": dims.vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": dims.vision.patch,
            "vision_use_head": False,
        },
    }


def _text_config(dims: LlmDims) -> Mapping[str, Any]:
    return {
        "model_type": "qwen2",
        "vocab_size": dims.vocab,
        "hidden_size": dims.hidden,
        "intermediate_size": dims.intermediate,
        "num_hidden_layers": dims.layers,
        "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads,
        "max_position_embeddings": 32_768,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": dims.tied_embeddings,
        "use_sliding_window": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default="llava-ov-7b", choices=list(PRESETS))
    parser.add_argument("--dtype", default=Dtype.BF16, choices=list(Dtype))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    total = make_checkpoint(args.directory, preset(args.model), Dtype(args.dtype), seed=args.seed)
    print(f"{args.directory}: {args.model}, {args.dtype}, {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
