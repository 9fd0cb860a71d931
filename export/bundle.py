"""`dycoke export`: a checkpoint directory becomes a bundle, or nothing is left behind."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from ..bundle.atomic import atomic_directory, atomic_write
from ..bundle.files import describe_parts
from ..bundle.manifest import Llm, Manifest, Source, Template, Vision
from ..bundle.paths import KERNELS, LLM, MANIFEST, TOKENIZER, VISION_GRAPH
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from .chat_template import read_chat_template
from .checkpoint import Checkpoint, open_checkpoint
from .kernel_images import check_kernel_targets, export_kernels
from .llm import export_llm
from .template import render_template
from .tokenizer import copy_tokenizer, open_tokenizer
from .vision import export_vision


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
    kind, checkpoint = Dtype(dtype), open_checkpoint(model_dir, vision_tower=vision_tower)
    if checkpoint.vision is None:
        raise DyCokeError(f"{model_dir}: a bare Qwen2; a bundle needs LLaVA-OneVision")
    if not checkpoint.llm.eos_ids:
        raise DyCokeError(
            f"{model_dir}: names no eos_token_id; add it to its generation_config.json"
        )
    config.check_layers(checkpoint.llm.layers)
    is_bundle = (target / MANIFEST).is_file()
    if is_bundle and not replace:
        raise DyCokeError(
            f"{target} exists already; choose another directory, or use --force to replace the old "
            "bundle"
        )
    llm, pad_id = Llm.of(checkpoint.llm, kind, tp), checkpoint.llm.pad_id
    assert pad_id is not None  # at least the first end id
    with atomic_directory(target, replace=is_bundle) as work:
        template = _text(checkpoint, work)  # read, and refused, before any weight
        vision = export_vision(checkpoint, work / VISION_GRAPH, config, kind)
        hashes = vision.hashes | {
            f"{LLM}/{name}": digest
            for name, digest in export_llm(checkpoint, work / LLM, config, kind, tp).items()
        }
        if kernel_targets:
            export_kernels(llm, work / KERNELS, kernel_targets)
        manifest = Manifest(
            exporter=f"dycoke-trt {version('dycoke-trt')}",
            source=Source(format=checkpoint.kind, revision=checkpoint.revision),
            arch=checkpoint.config.family,
            dycoke=config.to_dict(),
            vision=Vision.of(vision.spec, kind, max_frames),
            llm=llm,
            template=template,
            visual_token_base=checkpoint.llm.vocab,
            end_ids=list(checkpoint.llm.eos_ids),
            pad_id=pad_id,
            parts=describe_parts(work, hashes),
        )
        atomic_write(work / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _text(checkpoint: Checkpoint, work: Path) -> Template:
    """Copies the tokenizer; the checkpoint's chat template, cut where video and question go."""
    copy_tokenizer(checkpoint.directory, work / TOKENIZER)
    encoder = open_tokenizer(work / TOKENIZER, checkpoint.llm.vocab)
    return render_template(read_chat_template(checkpoint.directory, checkpoint.kind), encoder)
