"""LLaVA-Video: LLaVA-OneVision's tower and decoder, and newlines as `mm_newline_position` says.

`grid` (the published models): behind each row of each frame; `frame`: behind each frame;
`no_token`: none. `one_token` is LLaVA-OneVision's layout, so such a checkpoint is of its family.
Followed: llava/model/llava_arch.py of LLaVA-VL/LLaVA-NeXT (df17966), add_token_per_grid and
add_token_per_frame. Its evaluation code also writes a sentence of times into the question
(`add_time_instruction`), which is text, and left to whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...compress.newlines import NEWLINES, Newline
from ...core.errors import DyCokeError
from ..registry import Family, is_llava_next


def _reads(config: Mapping[str, Any]) -> bool:
    return is_llava_next(config) and config.get("mm_newline_position", "one_token") != "one_token"


def _newline(config: Mapping[str, Any]) -> Newline:
    position = config["mm_newline_position"]
    for newline in NEWLINES:
        if position == newline:
            return newline
    raise DyCokeError(
        f"mm_newline_position={position!r} is not supported; supported: {', '.join(NEWLINES)}"
    )


FAMILY = Family(
    name="llava-video-qwen2",
    source="llava with mm_newline_position (LLaVA-Video)",
    reads=_reads,
    newline=_newline,
)
