"""What was kept before a question is let go after its answer, and no earlier."""

from __future__ import annotations

import weakref

import pytest
from dycoke_trt.triton_repo.models.spent import Spent


class Responses:
    """Stands for an iterator: an object whose end can be seen."""


def kept_in(spent: Spent) -> weakref.ref[Responses]:
    responses = Responses()
    spent.keep(responses)
    return weakref.ref(responses)


def test_only_what_came_before_the_question_is_let_go_after_its_answer() -> None:
    spent = Spent()
    before = kept_in(spent)
    with spent.released():
        meanwhile = kept_in(spent)  # of another thread: the messenger may not have come to it
        assert before() is not None
    assert before() is None
    assert meanwhile() is not None
    with spent.released():
        pass
    assert meanwhile() is None


def test_a_question_without_an_answer_lets_nothing_go() -> None:
    spent = Spent()
    before = kept_in(spent)
    with pytest.raises(RuntimeError), spent.released():
        raise RuntimeError
    assert before() is not None
