"""The suite: questions about synthetic videos, their answers, and how answers are judged.

    sample = make_sample(HELD_OUT_SEEDS[0])     # frames, question, answer, task

`frames` is what the generator draws; training and evaluation use it after an mp4 round trip
(`mp4.round_trip`), because that is what a user's video looks like.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .scenes import Item, Scene, make_scene, render

Task = Literal["colour", "shape", "count", "first", "last", "change", "describe"]
TASKS: tuple[Task, ...] = get_args(Task)
SHORT_TASKS = tuple(task for task in TASKS if task != "describe")

# Disjoint by construction: nothing in training may draw a seed from HELD_OUT_SEEDS.
TRAIN_SEEDS = range(0, 1_000_000_000)
HELD_OUT_SEEDS = range(1_000_000_000, 1_001_000_000)

NUMBERS = ("one", "two", "three", "four", "five")


@dataclass(frozen=True)
class Sample:
    """One video with one question. frames: uint8 [F, 96, 96, 3], RGB, as drawn."""

    frames: NDArray[np.uint8]
    question: str
    answer: str
    task: Task


@dataclass(frozen=True)
class Question:
    task: Task
    question: str
    answer: str


def make_sample(seed: int) -> Sample:
    """The sample of a seed; its task is TASKS[seed % 7]. Same seed, same sample."""
    scene = scene_for(seed)
    task = task_of(seed)
    asked = [q for q in questions(scene) if q.task == task]
    chosen = asked[np.random.default_rng([seed, 2]).integers(len(asked))]
    return Sample(render(scene), chosen.question, chosen.answer, task)


def task_of(seed: int) -> Task:
    return TASKS[seed % len(TASKS)]


def scene_for(seed: int) -> Scene:
    """The scene of a sample: it has a colour change wherever the task asks for one."""
    return make_scene(seed, with_change=True if task_of(seed) == "change" else None)


def questions(scene: Scene) -> list[Question]:
    """Everything that can be asked about a scene, in a fixed order.

    Colour and shape are asked only of items that keep their colour, so that there is one answer.
    """
    asked: list[Question] = []
    for item in scene.items:
        if item.change is None:
            asked.append(Question("colour", f"What colour is the {item.shape}?", item.colour))
            asked.append(Question("shape", f"What shape is {item.colour}?", item.shape))
    asked.append(Question("count", "How many shapes appear?", NUMBERS[len(scene.items) - 1]))
    first, last = scene.items[0], scene.items[-1]
    asked.append(Question("first", "What appears first?", _named(first)))
    asked.append(Question("last", "What appears last?", _named(last)))
    changed = scene.changed
    if changed is not None:
        answer = f"the {changed.shape} turns {changed.new_colour}"
        asked.append(Question("change", "What changes colour, and to what?", answer))
    told = "Describe in order what appears and what changes."
    asked.append(Question("describe", told, describe(scene)))
    return asked


def describe(scene: Scene) -> str:
    """One sentence per event, in order: every appearance, and the change of colour."""
    events: list[tuple[int, str]] = []
    for item in scene.items:
        events.append((item.start, f"{_named(item)} appears on the {item.side}."))
        if item.change is not None:
            events.append((item.change, f"the {item.shape} turns {item.new_colour}."))
    told = [statement for _, statement in sorted(events)]
    return " ".join(f"{'Then' if i else 'First'} {text}" for i, text in enumerate(told))


def statements(text: str) -> list[str]:
    """The statements of a description, without First and Then."""
    parts = (_plain(part) for part in text.split("."))
    return [re.sub(r"^(first|then) ", "", part) for part in parts if part]


def score(task: Task, answer: str, prediction: str) -> float:
    """How right a prediction is, 0..1.

    Short answers: 1 or 0, compared without case, punctuation and spacing. describe: the share of
    statements that are right and in order: the longest common subsequence of statements over the
    longer of the two lists, so that inventions cost as much as omissions.
    """
    if task != "describe":
        return float(_plain(answer) == _plain(prediction))
    right, told = statements(answer), statements(prediction)
    return _common(right, told) / max(len(right), len(told))


def _named(item: Item) -> str:
    return f"a {item.colour} {item.shape}"


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^a-z ]", " ", text.lower()).split())


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for left in a:
        previous = row
        row = [0]
        for j, right in enumerate(b):
            row.append(previous[j] + 1 if left == right else max(previous[j + 1], row[j]))
    return row[-1]
