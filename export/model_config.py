"""What a checkpoint's config.json says, in one form for all source formats.

Defaults are those of the classes that the source formats name (Qwen2Config, SiglipVisionConfig):
nested configurations are saved without the values that equal them. What the exported graph would
compute differently is refused here, one line each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..arch.registry import family_of, is_llava_next
from ..arch.spec import DecoderSpec, TowerSpec
from ..compress.newlines import Newline
from ..core.errors import DyCokeError
from .config_reader import ConfigReader
from .rope import rope_theta

SourceKind = Literal["hf", "lmms", "qwen2"]
_QWEN2 = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
_SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
# google/siglip-so400m-patch14-384, which the LLaVA-NeXT code takes for granted.
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


# Keys of Qwen2's kin; as in Qwen2, where only query, key and value have a bias.
_FIXED = {"attention_bias": True, "qkv_bias": True, "mlp_bias": False, "use_qk_norm": False}


@dataclass(frozen=True)
class ModelConfig:
    """What the model is, whatever the format of its checkpoint, and which that is.

    family: of arch/registry.py. vision: None for a bare language model.
    """

    family: str
    llm: DecoderSpec
    vision: TowerSpec | None
    newline: Newline = "one_token"
    kind: SourceKind = "hf"


def parse_config(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tower: Mapping[str, Any] | None,
    where: str,
) -> ModelConfig:
    """config, generation: config.json and generation_config.json (or {}).

    tower: config.json of a separate SigLIP directory, for LLaVA-NeXT checkpoints.
    where: the file that errors name.
    Raises DyCokeError for another architecture and for every feature that is not supported.
    """
    reader = _Reader(where)
    kind = config.get("model_type")
    if kind == "llava_onevision":
        text, vision = (reader.section(config, f"{name}_config") for name in ("text", "vision"))
        reader.equals(text, "model_type", "qwen2", default="qwen2", section="text_config")
        reader.equals(config, "vision_feature_select_strategy", "full", default="full")
        reader.equals(config, "projector_hidden_act", "gelu", default="gelu")
        reader.equals(config, "multimodal_projector_bias", True, default=True)
        reader.equals(
            vision,
            "model_type",
            "siglip_vision_model",
            default="siglip_vision_model",
            section="vision_config",
        )
        merged = {**config, **text} if text else dict(config)
        tied = bool(text.get("tie_word_embeddings") or config.get("tie_word_embeddings"))
        absent = config.get("vision_config") is None
        defaults = {**SO400M, "num_hidden_layers": 26} if absent else _SIGLIP
        layer = config.get("vision_feature_layer", -1)
        return ModelConfig(
            family_of(config, where).name,
            reader.llm(text, merged, generation, tied),
            reader.vision(vision, {**_SIGLIP, **defaults}, layer),
        )
    tied = bool(config.get("tie_word_embeddings"))
    if is_llava_next(config):
        family = family_of(config, where)
        try:
            newline = family.newline(config)
        except DyCokeError as error:
            raise DyCokeError(f"{where}: {error}") from None
        reader.llava_next(config, newline)
        if tower is None and config.get("mm_hidden_size", 1152) != 1152:
            raise DyCokeError(
                f"{where}: mm_hidden_size={config['mm_hidden_size']} is not SigLIP-so400m's 1152; "
                "give the tower's own checkpoint directory with --vision-tower"
            )
        tower = (tower or {}).get("vision_config", tower) or SO400M
        # The released code deletes the tower's last layer, then takes what the others give.
        vision_config = reader.vision(tower, _SIGLIP, -2)
        llm = reader.llm(config, config, generation, tied)
        return ModelConfig(family.name, llm, vision_config, newline, "lmms")
    if kind == "qwen2":
        return ModelConfig(
            "qwen2", reader.llm(config, config, generation, tied), None, kind="qwen2"
        )
    family_of(config, where)  # raises
    raise AssertionError(f"{where}: a family without a reader")


class _Reader(ConfigReader):
    def llm(
        self,
        text: Mapping[str, Any],
        ids: Mapping[str, Any],
        generation: Mapping[str, Any],
        tied: bool,
    ) -> DecoderSpec:
        """text: the Qwen2 part; ids: where token ids are looked up."""
        self.equals(text, "hidden_act", "silu", default="silu")
        for key, fixed in _FIXED.items():
            if text.get(key, fixed) not in (None, fixed):
                raise self.refusal(f"{key}={text[key]!r}", f"{fixed!r}, as in Qwen2")
        heads = self.count(text, "num_attention_heads", _QWEN2)
        hidden = self.count(text, "hidden_size", _QWEN2)
        kv_heads = heads  # for null; Qwen2Config's own default counts only without the key
        if text.get("num_key_value_heads", 0) is not None:
            kv_heads = self.count(text, "num_key_value_heads", _QWEN2)
        head_dim = self.count(text, "head_dim", {"head_dim": hidden // heads})
        if heads % kv_heads or head_dim % 2:
            raise self.refusal(
                f"{heads} query heads over {kv_heads} key-value heads of {head_dim}",
                "query heads a multiple of key-value heads, an even head size",
            )
        layers = self.count(text, "num_hidden_layers", _QWEN2)
        self.sliding_window(text, layers)
        vocab = self.count(text, "vocab_size", _QWEN2)
        eos = _first(generation.get("eos_token_id"), ids.get("eos_token_id"))
        eos_ids = tuple(eos) if isinstance(eos, (list, tuple)) else () if eos is None else (eos,)
        for token in eos_ids:
            if not _is_id(token, vocab):
                raise self.refusal(f"eos_token_id={eos!r}", f"token ids from 0 to {vocab - 1}")
        pad = _first(generation.get("pad_token_id"), ids.get("pad_token_id"))
        return DecoderSpec(
            layers=layers,
            hidden=hidden,
            intermediate=self.count(text, "intermediate_size", _QWEN2),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=vocab,
            tied_embeddings=tied,
            rope_theta=self.rope_theta(text),
            rms_norm_eps=self.number(text, "rms_norm_eps", _QWEN2),
            max_positions=self.count(text, "max_position_embeddings", _QWEN2),
            eos_ids=eos_ids,
            # It fills places that nothing reads; some files say -1.
            pad_id=pad if _is_id(pad, vocab) else (eos_ids[0] if eos_ids else None),
        )

    def vision(
        self, vision: Mapping[str, Any], defaults: Mapping[str, Any], feature_layer: Any
    ) -> TowerSpec:
        """feature_layer: index into the hidden states, of which there is one more than layers."""
        self.equals(vision, "num_channels", 3, default=3)
        activation = vision.get("hidden_act", "gelu_pytorch_tanh")
        if activation not in ("gelu_pytorch_tanh", "gelu"):
            raise self.refusal(f"vision hidden_act={activation!r}", "gelu_pytorch_tanh, gelu")
        layers = self.count(vision, "num_hidden_layers", defaults)
        if not isinstance(feature_layer, int) or isinstance(feature_layer, bool):
            raise self.refusal(f"vision_feature_layer={feature_layer!r}", "one integer")
        used = feature_layer if feature_layer >= 0 else layers + 1 + feature_layer
        if not 1 <= used <= layers:
            raise self.refusal(
                f"vision_feature_layer={feature_layer} of {layers} layers", f"-{layers} to {layers}"
            )
        heads = self.count(vision, "num_attention_heads", defaults)
        hidden = self.count(vision, "hidden_size", defaults)
        size, patch = (self.count(vision, key, defaults) for key in ("image_size", "patch_size"))
        if hidden % heads or size < patch:
            raise self.refusal(
                f"vision tower of hidden {hidden}, {heads} heads, image {size}, patch {patch}",
                "hidden a multiple of the heads, an image of at least one patch",
            )
        return TowerSpec(
            layers=used,
            hidden=hidden,
            intermediate=self.count(vision, "intermediate_size", defaults),
            patch=patch,
            patches_per_side=size // patch,
            heads=heads,
            image_size=size,
            layer_norm_eps=self.number(vision, "layer_norm_eps", _SIGLIP),
            tanh_gelu=activation == "gelu_pytorch_tanh",
        )

    def llava_next(self, config: Mapping[str, Any], newline: Newline) -> None:
        """Refuses LLaVA-NeXT settings whose video path is another one."""
        if config.get("model_type") not in ("llava", "llava_qwen", "qwen2"):
            raise self.refusal(f"model_type={config.get('model_type')!r}", "llava, llava_qwen")
        self.equals(config, "mm_projector_type", "mlp2x_gelu", default="linear")
        self.equals(config, "mm_spatial_pool_mode", "bilinear", default=None)
        self.equals(config, "add_faster_video", False, default=False)
        merge = config.get("mm_patch_merge_type", "flat")
        # Elsewhere no newline stands behind a video of one_token.
        unpad = newline != "one_token" or "unpad" in str(merge)
        if not str(merge).startswith("spatial") or not unpad:
            raise self.refusal(f"mm_patch_merge_type={merge!r}", "spatial_unpad")
        resampler = config.get("mm_resampler_type")
        if resampler not in (None, "spatial_pool"):
            raise self.refusal(f"mm_resampler_type={resampler!r}", "none")

    def rope_theta(self, text: Mapping[str, Any]) -> float:
        try:
            return rope_theta(text)
        except ValueError as error:
            raise self.refusal(*error.args) from None

    def sliding_window(self, text: Mapping[str, Any], layers: int) -> None:
        """As Qwen2Config: a window of 4,096 and 28 layers below it, unless the file says so.

        Full attention needs both ways to say it: releases of transformers differ in which counts.
        """
        kinds = set(text.get("layer_types") or []) - {"full_attention"}
        window = text.get("use_sliding_window") and text.get("sliding_window", 4096) is not None
        if window and text.get("max_window_layers", 28) < layers:
            kinds.add("sliding window attention")
        if kinds:
            raise self.refusal(f"{sorted(kinds)[0]} in use", "full attention in all layers")


def _is_id(value: Any, vocab: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
