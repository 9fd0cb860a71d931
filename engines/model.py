"""What build plans need to know of a model: read from a bundle, or from a preset's dimensions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from ..bundle.files import open_bundle
from ..bundle.llm_config import read_llm_config
from ..bundle.manifest import Manifest
from ..bundle.paths import LLM, VISION_FILES
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from ..cost.dims import PRESETS, LlmDims, ModelDims, VisionDims, preset

PRESET_POSITIONS = 32_768  # max_position_embeddings of all three


@dataclass(frozen=True)
class Model:
    """What a plan needs to know of a model. dtype: of weights and cached K and V."""

    dims: ModelDims
    vision_weights: int  # bytes of the vision graph's weights
    max_frames: int
    max_positions: int
    dtype: Dtype
    tp: int
    config: DyCokeConfig

    @property
    def name(self) -> str:
        return self.dims.name

    @property
    def llm(self) -> LlmDims:
        return self.dims.llm

    def visual_tokens(self, frames: int, k: float | None = None) -> int:
        """V of a video; k: another pruning rate than the model's, 0 is no merging at all."""
        if k == 0:
            return self.dims.visual_tokens(frames, DyCokeConfig.off())
        config = self.config if k is None else self.config.with_changes(k=k)
        return self.dims.visual_tokens(frames, config)


def model_of_bundle(bundle: Path) -> Model:
    """Raises DyCokeError for what is no bundle, or one whose llm/config.json is not readable."""
    manifest = open_bundle(bundle)
    llm = read_llm_config(bundle / LLM).llm
    return Model(
        dims=ModelDims(bundle.name, llm, _vision_dims(manifest), manifest.vision.newline),
        vision_weights=sum(manifest.parts[n].size for n in VISION_FILES if n in manifest.parts),
        max_frames=manifest.vision.max_frames,
        max_positions=manifest.llm.max_positions,
        dtype=manifest.llm.dtype,
        tp=manifest.llm.tp,
        config=manifest.config,
    )


def _vision_dims(manifest: Manifest) -> VisionDims:
    """The tower's; where a bundle of 0.1.0 does not say them, so400m's widths on its patches."""
    if manifest.vision.tower is None:
        return VisionDims(patches_per_side=2 * math.isqrt(manifest.vision.tokens_per_frame))
    return manifest.tower()[0]


def model_of_preset(name: str, *, tp: int, max_frames: int, config: DyCokeConfig) -> Model:
    """A published checkpoint in 16-bit floats, before it was downloaded or exported."""
    dims = preset(name)
    if tp < 1 or dims.llm.heads % tp or dims.llm.intermediate % tp:
        raise DyCokeError(
            f"--tp {tp} is impossible for {name}: {dims.llm.heads} query heads, "
            f"an FFN of {dims.llm.intermediate}"
        )
    return Model(
        dims=dims,
        vision_weights=2 * dims.vision_weights,
        max_frames=max_frames,
        max_positions=PRESET_POSITIONS,
        dtype=Dtype.BF16,
        tp=tp,
        config=config,
    )


def dims_of(model: Model) -> ModelDims | None:
    """The published checkpoint with these dimensions, for floors; None where there is none."""
    said = asdict(model.llm).items()
    return next((dims for dims in PRESETS.values() if asdict(dims.llm).items() <= said), None)
