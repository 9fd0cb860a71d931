"""`bundle.json`: what a bundle holds, from what it was made, and how to prove it is whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from ..arch.registry import families
from ..arch.spec import DecoderSpec, PixelScale, TowerSpec, VisionSpec
from ..compress.base import compressor_of, visual_tokens
from ..compress.newlines import Newline
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from .paths import MANIFEST

if TYPE_CHECKING:
    from ..arch.siglip import Attention, VisionModel

SCHEMA_VERSION = 1  # of Manifest below


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Strict):
    """One file of the bundle."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Tower(_Strict):
    """The vision tower's shape and pixel scale: arch/spec.py's TowerSpec and PixelScale."""

    layers: int = Field(ge=0)
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    heads: int = Field(gt=0)
    patch: int = Field(gt=0)
    patches_per_side: int = Field(gt=0)
    layer_norm_eps: float = Field(gt=0)
    tanh_gelu: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float

    @classmethod
    def of(cls, spec: TowerSpec, scale: PixelScale) -> Tower:
        values = asdict(spec) | asdict(scale)
        return cls.model_validate({name: values[name] for name in cls.model_fields})


class Vision(_Strict):
    """How frames enter the vision graph and what comes out. Bundles of 0.1.0 have no `tower`."""

    image_size: int = Field(gt=0)
    tower: Tower | None = None
    newline: Newline = "one_token"
    tokens_per_frame: int = Field(gt=0)
    dtype: Dtype
    frames_multiple: Literal[4] = 4
    max_frames: int = Field(ge=4)

    @classmethod
    def of(cls, spec: VisionSpec, dtype: Dtype, max_frames: int) -> Vision:
        return cls(
            image_size=spec.tower.image_size,
            tower=Tower.of(spec.tower, spec.scale),
            newline=spec.newline,
            tokens_per_frame=spec.tower.tokens_per_frame,
            dtype=dtype,
            max_frames=max_frames,
        )


class Llm(_Strict):
    """The decoder, and the ranks that were exported."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    dtype: Dtype
    tp: int = Field(ge=1)

    @classmethod
    def of(cls, spec: DecoderSpec, dtype: Dtype, tp: int) -> Llm:
        values = asdict(spec) | {"dtype": dtype, "tp": tp}
        return cls.model_validate({name: values[name] for name in cls.model_fields})


class Template(_Strict):
    """The chat template around one video and one question.

    with a video: `prefix` + visual tokens + `middle` + question + `suffix`;
    without: `text_prefix` + question + `suffix`. span_start: tokens of `prefix`.
    """

    prefix: str
    middle: str
    suffix: str
    text_prefix: str
    span_start: int = Field(ge=0)


class Source(_Strict):
    """What the bundle was exported from."""

    format: str
    revision: str


class Manifest(_Strict):
    """bundle.json. `visual_token_base`: ids from here on are visual tokens (the padded vocab)."""

    schema_version: Literal[1] = 1
    arch: str = "llava-onevision-qwen2"
    exporter: str
    source: Source
    dycoke: dict[str, Any]
    vision: Vision
    llm: Llm
    template: Template
    visual_token_base: int
    end_ids: list[int] = Field(min_length=1)
    pad_id: int
    parts: dict[str, Part]

    @field_validator("arch")
    @classmethod
    def _known_family(cls, value: str) -> str:
        if value not in families():
            raise ValueError(f"{value!r} is not known; allowed: {', '.join(families())}")
        return value

    @field_validator("dycoke")
    @classmethod
    def _valid_config(cls, value: dict[str, Any]) -> dict[str, Any]:
        return DyCokeConfig.from_dict(value).to_dict()

    _identity: str | None = PrivateAttr(default=None)

    @property
    def identity(self) -> str:
        """The hash of what bundle.json says, however it is laid out: engines record it, and are
        refused for another bundle.

        Of the file where it was read, not of this class: a release that knows a field more leaves
        the engines of older bundles valid.
        """
        return self._identity or _identity_of(json.loads(self.model_dump_json()))

    @property
    def config(self) -> DyCokeConfig:
        return DyCokeConfig.from_dict(self.dycoke)

    def tower(self) -> tuple[TowerSpec, PixelScale]:
        """Raises DyCokeError for a bundle of 0.1.0, which has weights in its graph alone."""
        tower = self.vision.tower
        if tower is None:
            raise DyCokeError(
                f"a bundle of {self.exporter} holds no weights of its vision tower beside the "
                "graph, which --target cuda needs; export again"
            )
        values = tower.model_dump()
        scale = PixelScale(**{field.name: values.pop(field.name) for field in fields(PixelScale)})
        return TowerSpec(**values, image_size=self.vision.image_size), scale

    def vision_model(self, attention: Attention | None = None) -> VisionModel:
        """The vision step as a module without its weights; raises what `tower` raises."""

        from ..arch.siglip import VisionModel

        tower, scale = self.tower()
        compressor = compressor_of(self.config, self.vision.tokens_per_frame)
        spec = VisionSpec(tower, self.llm.hidden, scale, compressor, self.vision.newline)
        return VisionModel(spec, self.vision.dtype.torch, attention=attention)

    def visual_tokens(self, frames: int) -> int:
        """V of a video of `frames` frames, newlines included.

        Raises DyCokeError naming valid counts.
        """
        step, most = self.vision.frames_multiple, self.vision.max_frames
        if frames < step or frames > most or frames % step:
            nearest = min(max(step, round(frames / step) * step), most // step * step)
            raise DyCokeError(
                f"{frames} frames are not allowed; allowed: multiples of {step} from {step} to "
                f"{most}; the nearest is {nearest}"
            )
        vision = self.vision
        return visual_tokens(frames, vision.tokens_per_frame, self.config, vision.newline)


def read_manifest(bundle: Path) -> Manifest:
    """Raises DyCokeError in one line for what is no bundle, or one of another schema."""
    path = bundle / MANIFEST
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise DyCokeError(
            f"{bundle}: no {MANIFEST} there, so it is no bundle; "
            f"run: dycoke export MODEL -o {bundle}"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DyCokeError(f"{path}: not readable ({error}); export again") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise DyCokeError(
            f"{path}: schema version {version!r}, this release reads {SCHEMA_VERSION}; export again"
        )
    try:
        manifest = Manifest.model_validate(raw)
        manifest._identity = _identity_of(raw)
        return manifest
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DyCokeError(f"{path}: {where}: {first['msg']}; export again") from None


def _identity_of(said: Any) -> str:
    compact = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(compact.encode()).hexdigest()
