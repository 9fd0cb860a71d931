"""`dycoke export`: a checkpoint directory becomes a bundle, or nothing is left behind."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from ..bundle.files import atomic_directory, atomic_write, describe_parts
from ..bundle.manifest import Manifest, Tower
from ..bundle.paths import KERNELS, MANIFEST
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from .checkpoint import open_checkpoint
from .kernel_images import check_kernel_targets, export_kernels
from .model import ExportedParts, export_parts


def export_bundle(
    model_dir: Path,
    target: Path,
    config: DyCokeConfig,
    *,
    dtype: str = "bfloat16",
    tp: int = 1,
    max_frames: int = 64,
    vision_tower: Path | None = None,
    kernel_targets: tuple[str, ...] = (),
    replace: bool = False,
) -> Manifest:
    """Writes the bundle `target` from a LLaVA-OneVision checkpoint; returns its manifest.

    dtype: of vision graph and LLM weights. tp: ranks of the LLM. max_frames: the most frames a
    request may have. vision_tower: SigLIP's own directory, where the checkpoint lacks the tower.
    kernel_targets: what to compile kernels for (export/kernel_images.py); none by default.
    replace: an old bundle of that name may go. Raises DyCokeError, one line, for whatever is wrong.
    """
    if dtype not in list(Dtype):
        raise DyCokeError(f"dtype={dtype!r} is not allowed; allowed: {', '.join(Dtype)}")
    if max_frames < 4 or max_frames % 4:
        raise DyCokeError(f"max_frames={max_frames} is not allowed; allowed: a multiple of 4")
    if kernel_targets:
        check_kernel_targets(kernel_targets)
    checkpoint = open_checkpoint(model_dir, vision_tower=vision_tower)
    if checkpoint.vision is None:
        raise DyCokeError(f"{model_dir}: a bare Qwen2; a bundle needs LLaVA-OneVision")
    if not checkpoint.llm.eos_ids:
        raise DyCokeError(
            f"{model_dir}: names no eos_token_id; add it to its generation_config.json"
        )
    config.check_layers(checkpoint.llm.dims.layers)
    with atomic_directory(target, replace=replace) as work:
        parts = export_parts(checkpoint, work, config, Dtype(dtype), tp)
        manifest = _manifest(parts, work, max_frames)
        if kernel_targets:
            export_kernels(manifest.llm, work / KERNELS, kernel_targets)
            manifest = manifest.model_copy(update={"parts": describe_parts(work)})
        atomic_write(work / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _manifest(parts: ExportedParts, work: Path, max_frames: int) -> Manifest:
    llm, vision = parts.llm_dims, parts.vision
    assert vision is not None
    assert parts.tower is not None
    return Manifest.model_validate(
        {
            "exporter": f"dycoke-trt {version('dycoke-trt')}",
            "source": {"format": parts.source_kind, "revision": parts.source_revision},
            "arch": parts.family,
            "dycoke": parts.config.to_dict(),
            "vision": {
                "image_size": parts.image_size,
                "tower": Tower.of(parts.tower, vision.pixel_scale),
                "newline": parts.newline,
                "tokens_per_frame": vision.tokens_per_frame,
                "dtype": parts.dtype,
                "max_frames": max_frames,
            },
            "llm": {
                "layers": llm.layers,
                "hidden": llm.hidden,
                "heads": llm.heads,
                "kv_heads": llm.kv_heads,
                "head_dim": llm.head_dim,
                "vocab": llm.vocab,
                "max_positions": parts.max_positions,
                "dtype": parts.dtype,
                "tp": parts.tp,
            },
            "template": parts.template,
            "visual_token_base": parts.visual_token_base,
            "end_ids": list(parts.eos_ids),
            "pad_id": parts.pad_id,
            "parts": describe_parts(work),
        }
    )
