"""Every key of transformers' configuration of a LLaVA-OneVision: obeyed, refused, or without effect
for a reason that stands here. A new key of a future transformers fails until somebody looks at it.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.export.chat_template import read_chat_template
from dycoke_trt.export.model_config import ModelConfig, parse_config
from dycoke_trt.export.processor import read_pixel_scale

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.processing_utils import VideosKwargs

# Of every configuration: how outputs are given back, what a classifier has, where a file is from.
COMMON = {field.name for field in dataclasses.fields(PreTrainedConfig)}

TEXT = {
    "model_type": "qwen2", "vocab_size": 900, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
    "max_position_embeddings": 512, "rope_theta": 1e6, "eos_token_id": 7, "pad_token_id": 8,
}  # fmt: skip
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
}  # fmt: skip
CONFIG = {"model_type": "llava_onevision", "text_config": TEXT, "vision_config": VISION}
# key: a value that has to change what is read, or to be refused
TOP = {
    "text_config": {"model_type": "llama"}, "vision_config": None,
    "projector_hidden_act": "relu", "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2, "multimodal_projector_bias": False, "tie_word_embeddings": True,
}  # fmt: skip
QWEN2 = {
    "vocab_size": 901, "hidden_size": 128, "intermediate_size": 97, "num_hidden_layers": 5,
    "num_attention_heads": 4, "num_key_value_heads": 8, "hidden_act": "gelu",
    "max_position_embeddings": 513, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "rope_parameters": {"rope_theta": 5e5}, "use_sliding_window": True,
    "layer_types": ["sliding_attention"] * 4, "pad_token_id": 9, "eos_token_id": [5, 6],
}  # fmt: skip
SIGLIP = {
    "hidden_size": 64, "intermediate_size": 49, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_channels": 1, "image_size": 70, "patch_size": 7, "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip
PROCESSOR = {"num_image_tokens": 9, "chat_template": "other", "video_token": "<|video|>"}
VIDEO = {
    "do_resize": False, "do_rescale": False, "do_normalize": False, "size": [9, 9],
    "default_to_square": 1, "resample": 2, "rescale_factor": 0.5, "image_mean": 0.1,
    "image_std": 0.1, "do_center_crop": True, "crop_size": [9, 9],
}  # fmt: skip
# key: (a value, why it changes nothing)
TOP_WITHOUT_EFFECT = {
    "image_token_index": (1, "there are no images in a prompt"),
    "video_token_index": (1, "visual tokens are the ids from the padded vocabulary on"),
    "image_grid_pinpoints": ([[9, 9]], "for single images; a frame has one size"),
    "vision_aspect_ratio": ("anyres_max_4", "for single images"),
}
QWEN2_WITHOUT_EFFECT = {
    "initializer_range": (0.1, "for training"),
    "use_cache": (False, "the paged cache is always used"),
    "sliding_window": (9, "counts with use_sliding_window only"),
    "max_window_layers": (1, "counts with use_sliding_window only"),
    "attention_dropout": (0.5, "for training"),
    "bos_token_id": (1, "Qwen2 begins with no token of its own"),
}
SIGLIP_WITHOUT_EFFECT = {
    "attention_dropout": (0.5, "for training"),
    "vision_use_head": (True, "the head comes after what is used"),
}
PROCESSOR_WITHOUT_EFFECT = {
    "vision_feature_select_strategy": ("default", "for single images; config.json has the tower's"),
    "image_token": ("<picture>", "there are no images in a prompt"),
    "vision_aspect_ratio": ("anyres_max_4", "for single images"),
}
VIDEO_WITHOUT_EFFECT = {
    "do_convert_rgb": (False, "frames are decoded to RGB"),
    "do_pad": (True, "LlavaOnevisionVideoProcessor pads nothing"),
    "do_sample_frames": (True, "a request chooses its frames: --frames, evenly"),
    "num_frames": (8, "as do_sample_frames"),
    "fps": (2, "as do_sample_frames"),
    "video_metadata": ({}, "for sampling"),
    "return_metadata": (True, "for the caller of the processor"),
    "return_tensors": ("pt", "the output is a tensor"),
    "data_format": ("channels_last", "order of the output's axes"),
    "input_data_format": ("channels_last", "order of the input's axes"),
    "device": ("cuda", "where the processor runs"),
}
PARTS = {"image_processor", "tokenizer", "video_processor", "kwargs", "self"}


def own(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)} - COMMON


@pytest.mark.parametrize(
    ("keys", "obeyed", "without"),
    [
        (own(LlavaOnevisionConfig), TOP, TOP_WITHOUT_EFFECT),
        (own(Qwen2Config), QWEN2, QWEN2_WITHOUT_EFFECT),
        (own(SiglipVisionConfig), SIGLIP, SIGLIP_WITHOUT_EFFECT),
        (
            set(inspect.signature(LlavaOnevisionProcessor.__init__).parameters) - PARTS,
            PROCESSOR,
            PROCESSOR_WITHOUT_EFFECT,
        ),
        (set(VideosKwargs.__annotations__), VIDEO, VIDEO_WITHOUT_EFFECT),
    ],
    ids=["top", "text", "vision", "processor", "video"],
)
def test_every_key_is_accounted_for(
    keys: set[str], obeyed: dict[str, Any], without: dict[str, Any]
) -> None:
    assert keys == {*obeyed, *without}
    assert not set(obeyed) & set(without)


def read(section: str | None = None, **change: Any) -> ModelConfig:
    config: dict[str, Any] = copy.deepcopy(CONFIG)
    (config if section is None else config[section]).update(change)
    return parse_config(config, {}, None, "config.json")


def changes(render: Callable[[], object], base: object, *, names: str) -> bool:
    """Whether something else is read now; a refusal names the key in one line."""
    refusal = ""
    try:
        changed = render() != base
    except DyCokeError as error:
        refusal, changed = str(error), True
    assert not refusal or (names in refusal and "\n" not in refusal)
    return changed


NUMBERS = [
    (section, key, value, obeyed)
    for section, table, obeyed in (
        (None, TOP, True),
        ("text_config", QWEN2, True),
        ("vision_config", SIGLIP, True),
        (None, {k: v for k, (v, _) in TOP_WITHOUT_EFFECT.items()}, False),
        ("text_config", {k: v for k, (v, _) in QWEN2_WITHOUT_EFFECT.items()}, False),
        ("vision_config", {k: v for k, (v, _) in SIGLIP_WITHOUT_EFFECT.items()}, False),
    )
    for key, value in table.items()
]


@pytest.mark.parametrize(("section", "key", "value", "obeyed"), NUMBERS)
def test_a_key_of_a_configuration(section: str | None, key: str, value: Any, obeyed: bool) -> None:
    more: dict[str, Any] = {"max_window_layers": 2} if key == "use_sliding_window" else {}
    name = "sliding" if key in ("use_sliding_window", "layer_types") else key
    assert changes(lambda: read(section, **{key: value, **more}), read(), names=name) is obeyed


@pytest.mark.parametrize("key", [*VIDEO, *VIDEO_WITHOUT_EFFECT])
def test_a_key_of_the_videos_processor(key: str, tmp_path: Path) -> None:
    size: Any = {"height": 56, "width": 56}
    base = {"size": size, "image_mean": 0.5, "image_std": 0.5}
    if key == "default_to_square":
        base["size"] = 56  # the shortest edge, unless this key makes it a square's
    if key == "crop_size":
        base |= {"do_center_crop": True, "crop_size": [56, 56]}

    def scale(**change: Any) -> object:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**base, **change}))
        return read_pixel_scale(tmp_path, 56)

    if key == "default_to_square":
        with pytest.raises(DyCokeError, match="size makes frames 56"):
            scale()
        assert scale(default_to_square=True)
        return
    value = VIDEO[key] if key in VIDEO else VIDEO_WITHOUT_EFFECT[key][0]
    name = "crop_size" if key == "do_center_crop" else key
    assert changes(lambda: scale(**{key: value}), scale(), names=name) is (key in VIDEO)


@pytest.mark.parametrize("key", [*PROCESSOR, *PROCESSOR_WITHOUT_EFFECT])
def test_a_key_of_the_processor(key: str, tmp_path: Path) -> None:
    base = {"size": {"height": 56, "width": 56}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(base))
    (tmp_path / "chat_template.jinja").write_text("template")

    def both(**change: Any) -> object:
        (tmp_path / "processor_config.json").write_text(json.dumps(change))
        template = read_chat_template(tmp_path, "hf")
        return read_pixel_scale(tmp_path, 56, 16), template.text, template.video

    value = PROCESSOR[key] if key in PROCESSOR else PROCESSOR_WITHOUT_EFFECT[key][0]
    assert changes(lambda: both(**{key: value}), both(), names=key) is (key in PROCESSOR)


ROPES: dict[str, dict[str, Any]] = {
    "none": {},
    "theta": {"rope_theta": 5e5},
    "parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "parameters without a type": {"rope_parameters": {"rope_theta": 5e5}},
    "scaling is the old name": {"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    "scaling with the old type": {"rope_scaling": {"type": "default", "rope_theta": 5e5}},
    "parameters before theta": {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 5e5}},
    "scaling before theta": {"rope_theta": 1e6, "rope_scaling": {"rope_theta": 5e5}},
    "theta for parameters without one": {
        "rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}
    },
    "theta beside an empty scaling": {"rope_theta": 5e5, "rope_scaling": {}},
    "null scaling": {"rope_theta": 5e5, "rope_scaling": None, "rope_parameters": None},
    "both, equal": {"rope_scaling": {"rope_theta": 5e5}, "rope_parameters": {"rope_theta": 5e5}},
    "whole heads": {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0}},
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_ropes_base_is_that_of_transformers(rope: dict[str, Any]) -> None:
    text = {key: value for key, value in TEXT.items() if key != "rope_theta"} | rope
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs: Any = Qwen2Config(**copy.deepcopy(text))
    config = {**CONFIG, "text_config": text}
    wanted = theirs.rope_parameters["rope_theta"]
    assert parse_config(config, {}, None, "config.json").llm.rope_theta == wanted


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling of rope type 'yarn'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters of rope type 'llama3'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "'mrope'"),
        (
            {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            r"rope_scaling.mrope_section=\[1, 1, 2\]",
        ),
        ({"rope_scaling": {"type": "default", "factor": 8.0}}, "rope_scaling.factor=8.0"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25"),
        (
            {"rope_scaling": {"rope_theta": 1e4}, "rope_parameters": {"rope_theta": 1e6}},
            "rope_scaling=.*beside rope_parameters=.*allowed: one of them",
        ),
        ({"rope_theta": 0}, "rope_theta=0"),
        ({"rope_theta": None}, "rope_theta=None"),
        ({"rope_theta": "1e6"}, "rope_theta='1e6'"),
        ({"rope_parameters": {"rope_theta": True}}, "rope_theta=True"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear' is not supported; allowed: an object"),
    ],
)
def test_ropes_that_are_refused(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(DyCokeError, match=f"^config.json: .*{message}") as caught:
        read("text_config", **rope)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        ("attention_bias", False, False), ("attention_bias", True, True),
        ("qkv_bias", False, False), ("mlp_bias", True, False), ("mlp_bias", None, True),
        ("use_qk_norm", True, False), ("eos_token_id", [7, 900], False),
        ("eos_token_id", "7", False), ("eos_token_id", -1, False),
        ("num_key_value_heads", None, True), ("layer_types", ["full_attention"] * 4, True),
        ("layer_types", ["linear_attention"] * 4, False), ("pad_token_id", -1, True),
    ],
)  # fmt: skip
def test_keys_of_kin(key: str, value: Any, taken: bool) -> None:
    """What other implementations of Qwen2 or its relatives know."""
    if taken:
        assert read("text_config", **{key: value}).llm.layers == 4
    else:
        with pytest.raises(DyCokeError, match=r"^config.json: .*(" + key + "|linear_attention)"):
            read("text_config", **{key: value})


@pytest.mark.parametrize("window", [{}, {"sliding_window": 64}, {"sliding_window": None}])
def test_windows_are_qwen2s(window: dict[str, Any]) -> None:
    """With use_sliding_window, a window of 4,096 unless the file says null, from layer 2 on."""
    values = {**TEXT, "use_sliding_window": True, "max_window_layers": 2, **window}
    slides = "sliding_attention" in (Qwen2Config(**values).layer_types or [])
    assert changes(lambda: read("text_config", **values), read(), names="sliding") is slides


@pytest.mark.parametrize("vision", [None, {}, {"num_hidden_layers": 5}], ids=str)
@pytest.mark.parametrize("text", [None, {}, {"hidden_size": 2048, "num_hidden_layers": 3}], ids=str)
def test_defaults_are_those_of_transformers(vision: Any, text: Any) -> None:
    """Nested configurations are saved without the values that equal the class's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs: Any = LlavaOnevisionConfig(
            vision_config=copy.deepcopy(vision), text_config=copy.deepcopy(text)
        )
    values = {"model_type": "llava_onevision", "vision_config": vision, "text_config": text}
    ours = parse_config(values, {}, None, "config.json")
    assert ours.vision is not None
    tower, dims = theirs.vision_config, ours.vision
    assert (dims.layers, dims.hidden, dims.intermediate, dims.patch, ours.vision.image_size) == (
        tower.num_hidden_layers, tower.hidden_size, tower.intermediate_size, tower.patch_size,
        tower.image_size,
    )  # fmt: skip
    model, llm = theirs.text_config, ours.llm
    assert (llm.layers, llm.hidden, llm.heads, llm.kv_heads, llm.vocab, llm.intermediate) == (
        model.num_hidden_layers, model.hidden_size, model.num_attention_heads,
        model.num_key_value_heads, model.vocab_size, model.intermediate_size,
    )  # fmt: skip


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
def test_a_section_that_is_no_object(section: str) -> None:
    with pytest.raises(
        DyCokeError, match=f"{section}='qwen2' is not supported; allowed: an object"
    ):
        read(**{section: "qwen2"})
