"""What a load asks: one question about one video, the shapes suite, or a user's JSONL file.

A line of the file is an object:

    {"video": "clips/a.mp4", "question": "What happens?"}

`video` is relative to the file. More keys are optional: `frames`, `cancel_after` (the request is
cancelled after so many responses) and the client's other inputs (`max_tokens`, `temperature`,
`top_k`, `top_p`, `seed`, `stop_words`), which win over the command's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import DyCokeError
from ...runtime.client import request_tensor, video_inputs

_OPTIONS = {
    "max_tokens": int, "temperature": (int, float), "top_k": int, "top_p": (int, float),
    "seed": int, "stop_words": list,
}  # fmt: skip
_KEYS = {"video": str, "question": str, "frames": int, "cancel_after": int, **_OPTIONS}


@dataclass(frozen=True)
class Question:
    """One request: input tensors by name; cancelled after `cancel_after` responses, 0: never."""

    values: dict[str, Any]
    cancel_after: int = 0


def question_about(
    video: Path, text: str, frames: int, max_tokens: int, size: Callable[[], int | None]
) -> Question:
    """size: says what frames of a large video are resized to. Raises DyCokeError for a file that
    cannot be read."""
    return _question(video_inputs(video, frames, size), text, max_tokens)


def shapes_questions(samples: int, frames: int, max_tokens: int) -> list[Question]:
    """Held-out samples of the shapes suite, as mp4 files."""
    from ...demo.mp4 import encode_mp4
    from ...demo.shapes import HELD_OUT_SEEDS, make_sample

    if samples < 1:
        raise DyCokeError(f"--samples {samples} is not allowed; allowed: an integer >= 1")
    made = [make_sample(seed) for seed in HELD_OUT_SEEDS[:samples]]
    return [
        _question(
            {"video_file_input": encode_mp4(sample.frames), "num_frames": frames},
            sample.question,
            max_tokens,
        )
        for sample in made
    ]


def read_questions(
    path: Path, frames: int, max_tokens: int, size: Callable[[], int | None]
) -> list[Question]:
    """size: as in `question_about`. Raises DyCokeError that names the line, for a file that does
    not hold such objects."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DyCokeError(f"{path}: cannot be read ({error})") from None
    questions = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                questions.append(_from_row(_parse(line), path.parent, frames, max_tokens, size))
            except DyCokeError as error:
                raise DyCokeError(f"{path}, line {number}: {error}") from None
    if not questions:
        raise DyCokeError(f"{path}: no line; each one is a JSON object with video and question")
    return questions


def _parse(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DyCokeError(f"not JSON ({error})") from None
    if not isinstance(row, dict) or "video" not in row or "question" not in row:
        raise DyCokeError("not an object with the keys video and question")
    for key, value in row.items():
        if key not in _KEYS:
            raise DyCokeError(f"unknown key {key!r}; allowed: {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise DyCokeError(f"{key}: {value!r} has the wrong type")
    if row.get("cancel_after", 0) < 0:
        raise DyCokeError(f"cancel_after: {row['cancel_after']} is not allowed; allowed: >= 0")
    return row


def _from_row(
    row: dict[str, Any], folder: Path, frames: int, max_tokens: int, size: Callable[[], int | None]
) -> Question:
    video = video_inputs(folder / row["video"], row.get("frames", frames), size)
    more = {key: value for key, value in row.items() if key in _OPTIONS}
    if "stop_words" in more:
        more["stop_words"] = [str(word).encode() for word in more["stop_words"]]
    for key, value in more.items():
        request_tensor(key, value)  # refuses what does not fit into the tensor's type
    made = _question(video, row["question"], max_tokens)
    return Question({**made.values, **more}, row.get("cancel_after", 0))


def _question(video: dict[str, Any], text: str, max_tokens: int) -> Question:
    return Question(
        {
            "text_input": text.encode("utf-8", "surrogatepass"),
            "max_tokens": max_tokens,
            "stream": True,
            "return_num_output_tokens": True,
            **video,
        }
    )
