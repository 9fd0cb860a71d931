"""The small model: a LLaVA-OneVision in every part, at about two million parameters.

SigLIP tower, two-layer projector, bilinear pooling to 36 tokens per frame, Qwen2 with grouped
heads. Everything runs through transformers' own classes; nothing here changes a forward pass.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.errors import DyCokeError
from . import MODEL_DIR
from .scenes import IMAGE_SIZE
from .tokenizer import END, END_OF_TEXT, IMAGE, VIDEO

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerBase

PATCH = 8
PATCHES = (IMAGE_SIZE // PATCH) ** 2
TOKENS_PER_FRAME = PATCHES // 4  # bilinear pooling halves both sides
WIDTH = 128
ROPE_THETA = 10_000.0  # the 1e6 of large models is for contexts this one never sees
# Of the finished model, which training does not change.
PROCESSOR_FILES = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"
)  # fmt: skip
VOCABULARY = 512  # padded above the tokenizer's last id, as real checkpoints are


def build_model(
    tokenizer: PreTrainedTokenizerBase, seed: int
) -> LlavaOnevisionForConditionalGeneration:
    """A fresh model with weights drawn from `seed`."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    vocabulary = tokenizer.get_vocab()
    end, pad, image, video = (vocabulary[token] for token in (END, END_OF_TEXT, IMAGE, VIDEO))
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.06,  # about 0.7 / sqrt(width): 0.02 suits widths of thousands
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=pad,
        eos_token_id=end,
        pad_token_id=pad,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        video_token_index=video,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    settings = model.generation_config
    settings.eos_token_id = [end, pad]
    settings.pad_token_id = pad
    settings.bos_token_id = pad
    return model


def frame_features(model: LlavaOnevisionForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Tower, projector and pooling: pixels [B, 3, H, W] -> [B, 36, 128], as HF's forward does."""
    inner = model.model
    tower = getattr(inner.vision_tower, "vision_model", inner.vision_tower)  # transformers 4 nests
    # The encoder's output is the last hidden state before post_layernorm, in every version.
    # (hidden_states[-1] of the tower is not: transformers 4.57 gives it after post_layernorm.)
    hidden = tower.encoder(inputs_embeds=tower.embeddings(pixels)).last_hidden_state
    pooled: Tensor = inner.apply_pooling(inner.multi_modal_projector(hidden))
    return pooled


def save_model(model: LlavaOnevisionForConditionalGeneration, folder: Path) -> None:
    """Writes weights (fp32), config, generation config and processor files to `folder`.

    Tensors get the names of the published LLaVA-OneVision checkpoints: every version of
    transformers reads those, while the names in memory change from one to the next.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        _published_name(name): tensor.float().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    weights_file = folder / "model.safetensors"
    save_file(weights, weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # it is made for its owner only
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # transformers 5 writes rope_parameters only, version 4 reads rope_theta only.
    config["text_config"].setdefault("rope_theta", ROPE_THETA)
    config["dtype"] = "float32"
    _write(folder / "config.json", config)
    model.generation_config.save_pretrained(folder)
    for name in PROCESSOR_FILES:
        if not (folder / name).is_file():
            shutil.copyfile(MODEL_DIR / name, folder / name)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model directory; raises DyCokeError in one line where there is none."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise DyCokeError(f"{path} is missing: no model there") from None
    except (OSError, ValueError) as error:
        raise DyCokeError(f"{path}: not readable ({error})") from None
    if not isinstance(config, dict) or "text_config" not in config:
        raise DyCokeError(f"{path}: not of a LLaVA-OneVision model (no text_config)")
    return config


def load_model(folder: Path) -> LlavaOnevisionForConditionalGeneration:
    """The model in `folder` in fp32, ready for inference.

    Raises DyCokeError in one line for a file that is missing or cannot be read.
    """
    from safetensors import SafetensorError
    from transformers import LlavaOnevisionForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    read_config(folder)
    if not (folder / "model.safetensors").is_file():
        raise DyCokeError(f"{folder / 'model.safetensors'} is missing: no model there")
    try:
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DyCokeError(f"{folder} holds no readable model: {first}") from None
    return model.eval()  # type: ignore[no-any-return]


def _published_name(name: str) -> str:
    name = name.removeprefix("model.")
    name = name.replace("vision_tower.vision_model.", "vision_tower.")  # transformers 4
    name = name.replace("vision_tower.", "vision_tower.vision_model.")
    return name.replace("language_model.", "language_model.model.")


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
