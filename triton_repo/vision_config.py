"""The model `vision_ttm`: in Python on one of the steps of runtime/vision.py, or the plan itself.

The images of TensorRT-LLM are built with its backend and Python's alone (docs/build.md of
triton-inference-server/tensorrtllm_backend at r26.07), so the plan is run by our model in Python;
a server that does have Triton's `tensorrt` backend runs it without Python.
"""

from __future__ import annotations

from ..bundle.manifest import Manifest
from ..core.errors import DyCokeError
from ..engines.vision_plan import PLAN_FILE, profile_ranges
from ..runtime import protocol as p
from ..runtime.vision import NATIVE, TENSORRT
from .model_config import ModelConfig

PLAN_BACKEND = "tensorrt"  # of Triton, in C++
AUTO = "auto"


def choose_vision(wanted: str, *, native: bool) -> str:
    """What runs the vision step: `auto` is what the build of the LLM brings along.

    native: the LLM is run by the native backend. Raises DyCokeError for a plan that no such build
    has.
    """
    if wanted == AUTO:
        return NATIVE if native else TENSORRT
    if wanted == TENSORRT and native:
        raise DyCokeError(
            "--vision tensorrt is for engines of TensorRT-LLM, which have a plan; with the native "
            "backend use --vision rtx, or leave it out"
        )
    return wanted


def vision_config(
    manifest: Manifest, place: dict[str, str], vision: str, *, gpu: bool
) -> ModelConfig:
    """`vision_ttm` in Python. place: parameters `bundle` and `build`, perhaps more. gpu: the
    embeddings stay in the GPU's memory, because the LLM step takes them there."""
    return ModelConfig(
        p.VISION,
        (p.frames_spec(manifest.vision.image_size),),
        (p.visual_embeds_spec(manifest.llm.hidden, manifest.vision.dtype),),
        parameters={**place, "vision": vision, "embeds_memory": "gpu" if gpu else "cpu"},
    )


def plan_config(manifest: Manifest) -> ModelConfig:
    """`vision_ttm` on Triton's own backend: all profiles on GPU 0, where rank 0 of the LLM is."""
    vision = manifest.vision
    profiles = range(len(profile_ranges(vision.image_size, vision.max_frames)))
    return ModelConfig(
        p.VISION,
        (p.frames_spec(vision.image_size),),
        (p.visual_embeds_spec(manifest.llm.hidden, vision.dtype),),
        platform="tensorrt_plan",
        file=PLAN_FILE,
        profiles=tuple(map(str, profiles)),
    )
