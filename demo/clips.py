"""Writes the sample clips: one small mp4 per task with its question and answer."""

from __future__ import annotations

import json
from pathlib import Path

from .mp4 import encode_mp4
from .shapes import HELD_OUT_SEEDS, TASKS, make_sample

# Far from the seeds that accuracy is measured on; one of each task in a row.
_FIRST = 900_000
CLIP_SEEDS = HELD_OUT_SEEDS[_FIRST : _FIRST + len(TASKS)]


def write_clips(folder: Path) -> list[dict[str, str | int]]:
    """Writes TASK.mp4 for every task and clips.json (file, question, answer, task, seed)."""
    folder.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, str | int]] = []
    for seed in CLIP_SEEDS:
        sample = make_sample(seed)
        name = f"{sample.task}.mp4"
        (folder / name).write_bytes(encode_mp4(sample.frames))
        listed.append(
            {
                "file": name,
                "question": sample.question,
                "answer": sample.answer,
                "task": sample.task,
                "seed": seed,
            }
        )
    listed.sort(key=lambda clip: TASKS.index(clip["task"]))
    (folder / "clips.json").write_text(json.dumps(listed, indent=2) + "\n")
    return listed


if __name__ == "__main__":
    write_clips(Path(__file__).parent / "clips")
