"""From a checkpoint to the parts of a bundle: vision graph, LLM, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..arch.spec import PixelScale, TowerSpec
from ..bundle.files import atomic_directory
from ..bundle.manifest import Template
from ..bundle.paths import LLM, TOKENIZER, VISION_GRAPH
from ..compress.base import visual_tokens
from ..compress.newlines import Newline
from ..core.config import DyCokeConfig
from ..core.dtype import Dtype
from ..cost.dims import LlmDims
from .chat_template import read_chat_template
from .checkpoint import Checkpoint
from .llm import export_llm
from .template import render_template
from .tokenizer import copy_tokenizer, open_tokenizer
from .vision import VisionExport, export_vision


@dataclass(frozen=True)
class ExportedParts:
    """What `export_parts` wrote, and what a manifest needs to know of it.

    files: paths relative to the directory, with forward slashes, sorted.
    family, newline: of arch/registry.py, and its layout of visual tokens.
    vision, tower, image_size, pixel_scale: None for a bare LLM.
    visual_token_base: first id of a visual token: the padded rows of the embedding.
    eos_ids, pad_id: as the checkpoint gives them; pad_id falls back to the first eos id.
    template: the text around a question; None for a bare LLM, or without tokenizer.
    """

    files: tuple[str, ...]
    family: str
    newline: Newline
    source_kind: str
    source_revision: str
    config: DyCokeConfig
    dtype: Dtype
    tp: int
    llm_dims: LlmDims
    vision: VisionExport | None
    tower: TowerSpec | None
    image_size: int | None
    pixel_scale: PixelScale | None
    visual_token_base: int
    eos_ids: tuple[int, ...]
    pad_id: int | None
    max_positions: int
    template: Template | None

    def visual_tokens(self, frames: int) -> int:
        """V for `frames` frames: survivors and newlines."""
        if self.vision is None:
            raise ValueError("a bare LLM has no visual tokens")
        tokens = self.vision.tokens_per_frame
        return visual_tokens(frames, tokens, self.config, self.newline)


def export_parts(
    checkpoint: Checkpoint,
    directory: Path | str,
    config: DyCokeConfig,
    dtype: Dtype = Dtype.BF16,
    tp: int = 1,
    *,
    tokenizer: bool = True,
    kept_rows: bool = False,
) -> ExportedParts:
    """Writes vision_ttm.onnx, llm/ and tokenizer/ into the new or empty `directory`.

    A checkpoint without vision tower (kind `qwen2`) gives llm/ and tokenizer/ only. tokenizer=False
    leaves tokenizer and template out; otherwise they are read, and refused, before any weight.
    kept_rows: as for `export_vision`.
    The directory appears only when everything in it is complete.
    Raises DyCokeError for whatever its parts refuse.
    """
    directory = Path(directory)
    files: list[str] = []
    vision, template = None, None
    with atomic_directory(directory) as stage:
        if tokenizer:
            names = copy_tokenizer(checkpoint.directory, stage / TOKENIZER)
            files += [f"{TOKENIZER}/{name}" for name in names]
            encoder = open_tokenizer(stage / TOKENIZER, checkpoint.llm.dims.vocab)
            if checkpoint.vision is not None:
                chat = read_chat_template(checkpoint.directory, checkpoint.kind)
                template = render_template(chat, encoder)
        if checkpoint.vision is not None:
            vision = export_vision(
                checkpoint, stage / VISION_GRAPH, config, dtype, kept_rows=kept_rows
            )
            files += vision.files
        names_of_llm = export_llm(checkpoint, stage / LLM, config, dtype, tp)
        files += [f"{LLM}/{name}" for name in names_of_llm]
    tower, llm = checkpoint.vision, checkpoint.llm
    return ExportedParts(
        files=tuple(sorted(files)),
        family=checkpoint.config.family,
        newline=checkpoint.config.newline,
        source_kind=checkpoint.kind,
        source_revision=checkpoint.revision,
        config=config,
        dtype=dtype,
        tp=tp,
        llm_dims=llm.dims,
        vision=vision,
        tower=tower,
        image_size=tower.image_size if tower else None,
        pixel_scale=vision.pixel_scale if vision else None,
        visual_token_base=llm.dims.vocab,
        eos_ids=llm.eos_ids,
        pad_id=llm.pad_id,
        max_positions=llm.max_positions,
        template=template,
    )
