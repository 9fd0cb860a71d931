"""The synthetic suite: deterministic, answerable, not guessable, and hard to compress blindly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from dycoke_trt.demo.mp4 import decode_mp4, encode_mp4, round_trip
from dycoke_trt.demo.scenes import COLOURS, SHAPES, make_scene, render
from dycoke_trt.demo.shapes import (
    HELD_OUT_SEEDS,
    TASKS,
    TRAIN_SEEDS,
    describe,
    make_sample,
    questions,
    scene_for,
    score,
    task_of,
)
from hypothesis import given
from hypothesis import strategies as st

seeds = st.integers(0, 2**31)
# The share of right answers of the best blind guess. Shapes and colours are drawn uniformly; a
# changed shape is one of six and takes one of eight colours.
CHANCE = {"colour": 1 / len(COLOURS), "shape": 1 / len(SHAPES), "count": 1 / 4} | dict.fromkeys(
    ("first", "last", "change"), 1 / (len(COLOURS) * len(SHAPES))
)


@given(seeds)
def test_same_seed_same_sample(seed: int) -> None:
    first, again = make_sample(seed), make_sample(seed)
    assert np.array_equal(first.frames, again.frames)
    assert (first.question, first.answer, first.task) == (again.question, again.answer, again.task)
    assert first.frames.shape == (16, 96, 96, 3)
    assert first.frames.dtype == np.uint8
    assert score(first.task, first.answer, first.answer) == 1.0


def test_different_seeds_give_different_videos() -> None:
    assert not np.array_equal(make_sample(1).frames, make_sample(2).frames)


def test_held_out_seeds_are_disjoint_from_training() -> None:
    assert TRAIN_SEEDS.stop <= HELD_OUT_SEEDS.start
    assert Counter(task_of(s) for s in HELD_OUT_SEEDS[:70]) == dict.fromkeys(TASKS, 10)


@given(seeds)
def test_scenes_hold_what_they_promise(seed: int) -> None:
    scene = make_scene(seed)
    assert 2 <= len(scene.items) <= 5
    for field in ("shape", "colour"):
        assert len({getattr(item, field) for item in scene.items}) == len(scene.items)
    events = [item.start for item in scene.items]
    events += [item.change for item in scene.items if item.change is not None]
    assert len(set(events)) == len(events)  # "in order" is well defined
    assert events[: len(scene.items)] == sorted(events[: len(scene.items)])
    for item in scene.items:
        assert 0 <= item.start < item.end <= 16
        assert item.end - item.start <= 6  # gone after a few frames
        if item.change is not None:
            assert item.start < item.change < item.end
            assert item.new_colour not in {i.colour for i in scene.items}
    assert sum(item.change is not None for item in scene.items) <= 1


@given(seeds)
def test_every_question_has_one_answer(seed: int) -> None:
    asked = questions(scene_for(seed))
    assert len({q.question for q in asked}) == len(asked)
    assert task_of(seed) in {q.task for q in asked}
    for question in asked:
        assert question.answer not in question.question


def test_answers_cannot_be_guessed() -> None:
    """The most frequent answer to the most frequent question is right about as often as stated."""
    answers: dict[str, Counter[str]] = {task: Counter() for task in TASKS}
    for seed in range(7 * 400):
        sample = make_sample_text(seed)
        answers[sample[0]][sample[1]] += 1
    for task in TASKS:
        if task != "describe":
            share = answers[task].most_common(1)[0][1] / answers[task].total()
            assert share < CHANCE[task] + 0.08


def make_sample_text(seed: int) -> tuple[str, str]:
    asked = [q for q in questions(scene_for(seed)) if q.task == task_of(seed)]
    chosen = asked[np.random.default_rng([seed, 2]).integers(len(asked))]
    return chosen.task, chosen.answer


def test_descriptions_are_scored_by_statement() -> None:
    answer = "First a red ring appears on the left. Then the ring turns blue."
    assert score("describe", answer, answer.lower()) == 1
    assert score("describe", answer, "First a red ring appears on the left.") == 0.5
    assert score("describe", answer, answer + " Then a red bar appears on the left.") == 2 / 3
    assert score("describe", answer, "Then the ring turns blue. First a red ring appears on") == 0.5
    assert score("describe", answer, "") == 0
    assert score("first", "a red ring", " A red  ring. ") == 1
    assert score("first", "a red ring", "a red bar") == 0


def test_descriptions_are_long_enough_to_prune_in() -> None:
    words = [len(describe(scene_for(seed)).split()) for seed in range(300)]
    assert np.mean(words) >= 24  # every word is at least one token


@given(seeds)
def test_colours_survive_the_codec(seed: int) -> None:
    """What training and evaluation see: the middle of a shape keeps its colour after yuv420."""
    scene = make_scene(seed)
    frames = round_trip(render(scene))
    for item in scene.items:
        if item.shape not in ("circle", "square"):
            continue
        y, x = item.row * 16 + 8 + item.offset[0], item.column * 16 + 8 + item.offset[1]
        for frame in range(item.start, item.end):
            seen = frames[frame, y - 2 : y + 2, x - 2 : x + 2].reshape(-1, 3).mean(0)
            distance = {c: np.abs(seen - np.array(rgb)).sum() for c, rgb in COLOURS.items()}
            assert min(distance, key=distance.__getitem__) == item.colour_at(frame)


def test_mp4_refuses_what_it_cannot_hold() -> None:
    assert decode_mp4(encode_mp4(np.zeros((3, 32, 32, 3), np.uint8))).shape == (3, 32, 32, 3)
    with pytest.raises(ValueError, match="uint8"):
        encode_mp4(np.zeros((3, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="not a readable video"):
        decode_mp4(b"nothing")
