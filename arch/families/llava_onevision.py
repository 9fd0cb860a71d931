"""LLaVA-OneVision: one newline behind the last frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...compress.newlines import Newline
from ..registry import Family, is_llava_next


def _reads(config: Mapping[str, Any]) -> bool:
    if config.get("model_type") == "llava_onevision":
        return True
    return is_llava_next(config) and config.get("mm_newline_position", "one_token") == "one_token"


def _newline(config: Mapping[str, Any]) -> Newline:
    del config  # Hugging Face's format has no other, and `_reads` refuses it in LLaVA-NeXT's
    return "one_token"


FAMILY = Family(
    name="llava-onevision-qwen2",
    source="llava_onevision (Hugging Face), llava with mm_vision_tower (LLaVA-NeXT)",
    reads=_reads,
    newline=_newline,
)
