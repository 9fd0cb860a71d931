"""`bundle.json`: what a bundle holds, from what it was made, and how to prove it is whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from ..core.config import DyCokeConfig
from ..core.errors import DyCokeError
from ..core.ttm import ttm_count
from .atomic import FILE as FILE

SCHEMA_VERSION = 1  # of Manifest below


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Strict):
    """One file of the bundle."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Vision(_Strict):
    """How frames enter the vision graph and what comes out."""

    image_size: int = Field(gt=0)
    tokens_per_frame: int = Field(gt=0)
    dtype: Literal["float32", "float16", "bfloat16"]
    frames_multiple: Literal[4] = 4
    max_frames: int = Field(ge=4)


class Llm(_Strict):
    """The decoder, and the ranks that were exported."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    dtype: Literal["float32", "float16", "bfloat16"]
    tp: int = Field(ge=1)


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
    arch: Literal["llava-onevision-qwen2"] = "llava-onevision-qwen2"
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

    @field_validator("dycoke")
    @classmethod
    def _valid_config(cls, value: dict[str, Any]) -> dict[str, Any]:
        return DyCokeConfig.from_dict(value).to_dict()

    _identity: str | None = PrivateAttr(default=None)

    @property
    def identity(self) -> str:
        """The hash of what bundle.json says, however it is laid out.

        Of the file where it was read, not of this class: a release that knows a field more leaves
        the engines of older bundles valid.
        """
        return self._identity or _identity_of(json.loads(self.model_dump_json()))

    @property
    def config(self) -> DyCokeConfig:
        return DyCokeConfig.from_dict(self.dycoke)

    def visual_tokens(self, frames: int) -> int:
        """V = M + 1 of a video of `frames` frames. Raises DyCokeError naming valid counts."""
        step, most = self.vision.frames_multiple, self.vision.max_frames
        if frames < step or frames > most or frames % step:
            nearest = min(max(step, round(frames / step) * step), most // step * step)
            raise DyCokeError(
                f"{frames} frames are not allowed; allowed: multiples of {step} from {step} to "
                f"{most}; the nearest is {nearest}"
            )
        config = self.config
        return ttm_count(frames, self.vision.tokens_per_frame, config.k, config.ttm) + 1


def read_manifest(bundle: Path) -> Manifest:
    """Raises DyCokeError in one line for what is no bundle, or one of another schema."""
    path = bundle / FILE
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise DyCokeError(
            f"{bundle}: no {FILE} there, so it is no bundle; run: dycoke export MODEL -o {bundle}"
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
