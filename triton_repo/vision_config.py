"""The model `vision_ttm`: in Python on one of the steps of runtime/vision.py, or the plan itself.

The images of TensorRT-LLM are built with its backend and Python's alone (docs/build.md of
triton-inference-server/tensorrtllm_backend at r26.07), so the plan is run by our model in Python;
a server that does have Triton's `tensorrt` backend runs it without Python.
"""

from __future__ import annotations

from ..bundle.manifest import Manifest
from ..bundle.paths import VISION_PLAN
from ..core.errors import DyCokeError
from ..engines.vision_plan import profile_ranges
from ..runtime import protocol as p
from ..runtime.vision import KINDS, NATIVE, RTX, TENSORRT
from .config_pbtxt import ModelConfig

PLAN_BACKEND = "tensorrt"  # of Triton, in C++
AUTO = "auto"


def choose_vision(wanted: str, build: str, *, native: bool) -> str:
    """What runs the vision step: `auto` is what the build of the LLM brings along.

    native: the LLM is run by the native backend. Raises DyCokeError for an unknown name, and for
    what cannot stand beside that build.
    """
    if wanted == AUTO:
        return NATIVE if native else TENSORRT
    if wanted not in KINDS:
        raise DyCokeError(
            f"--vision {wanted!r} is not allowed; allowed: {AUTO}, {', '.join(KINDS)}"
        )
    allowed = {"cpu": (NATIVE,), "cuda": (NATIVE, RTX)}.get(build, (TENSORRT, RTX))
    if wanted not in allowed:
        raise DyCokeError(
            f"--vision {wanted} does not go with --target {build}; allowed: {', '.join(allowed)}"
        )
    return wanted


def vision_config(
    manifest: Manifest, place: dict[str, str], vision: str, *, gpu: bool, cuda_graph: bool
) -> ModelConfig:
    """`vision_ttm` in Python. place: parameters `bundle` and `build`, perhaps more. gpu: the
    embeddings stay in the GPU's memory, because the LLM step takes them there."""
    if cuda_graph and vision != RTX:
        raise DyCokeError(f"--vision-cuda-graph has no effect with --vision {vision}")
    return ModelConfig(
        p.VISION,
        (p.frames_spec(manifest.vision.image_size),),
        (p.visual_embeds_spec(manifest.llm.hidden, manifest.vision.dtype),),
        parameters={
            **place,
            "vision": vision,
            "embeds_memory": "gpu" if gpu else "cpu",
            "cuda_graph": "true" if cuda_graph else "false",
        },
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
        file=VISION_PLAN,
        profiles=tuple(map(str, profiles)),
    )
