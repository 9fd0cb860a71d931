"""Options made of a dataclass of bounds: --max-queue of its field max_queue, and so on.

@limit_options(RequestLimits, "limits", "runtime.limits")
def serve(..., *, limits: RequestLimits) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

_HELP = {
    "max_question_bytes": "Bytes of a question.",
    "max_stop_words": "Stop words of a request.",
    "max_stop_word_bytes": "Bytes of a stop word.",
    "max_tokens": "Tokens of an answer.",
    "max_queue": "Requests that wait before each step, beside a full batch.",
    "max_wait_seconds": "Seconds that a request waits there.",
    "max_answer_seconds": "Seconds of an answer.",
    "preprocessors": "Processes that decode videos.",
}


def limit_options(bounds: type[Any], argument: str) -> Callable[[Callable[..., None]], Any]:
    """Replaces the argument of a command, an object of `bounds`, by an option per field.

    Values that the dataclass refuses are the command's errors.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            values = {field.name: given.pop(field.name) for field in fields(bounds)}
            command(**given, **{argument: bounds(**values)})

        signature = inspect.signature(command, eval_str=True)
        options = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[
                    type(field.default),
                    typer.Option(help=_HELP[field.name], rich_help_panel="Limits"),
                ],
            )
            for field in fields(bounds)
        ]
        others = [p for p in signature.parameters.values() if p.name != argument]
        with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*others, *options]
        )
        with_options.__annotations__ = {p.name: p.annotation for p in [*others, *options]}
        return with_options

    return decorate
