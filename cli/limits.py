"""Options made of a dataclass of bounds: --max-queue of its field max_queue, and so on.

@limit_options(RequestLimits, "requests")
def serve(..., *, requests: RequestLimits) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

from ..runtime.bounds import Bounds

_HELP = {
    "max_question_bytes": "Bytes of a question.",
    "max_stop_words": "Stop words of a request.",
    "max_stop_word_bytes": "Bytes of a stop word.",
    "max_tokens": "Tokens of an answer.",
    "max_queue": "Requests that wait before each step, beside a full batch.",
    "max_wait_seconds": "Seconds that a request waits there.",
    "max_answer_seconds": "Seconds of an answer.",
    "preprocessors": "Processes that decode videos.",
    "max_video_bytes": "Bytes of an encoded video.",
    "max_video_pixels": "Pixels of a video's frame, width x height.",
    "max_video_frames": "Frames in a video's file.",
    "max_video_samples": "Frames sampled from a video.",
    "max_video_seconds": "Seconds of reading a video; in a server, processor time.",
}


def limit_options(bounds: type[Bounds], argument: str) -> Callable[[Callable[..., None]], Any]:
    """Replaces the argument of a command, an object of `bounds`, by an option per field.

    Values that the dataclass refuses are the command's errors.
    """

    names = {bound.name: bounds.parameter(bound.name) for bound in fields(bounds)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(*words: Any, **given: Any) -> None:
            values = {n: given.pop(option) for n, option in names.items() if option in given}
            command(*words, **given, **{argument: bounds(**values)})

        signature = inspect.signature(command, eval_str=True)
        options = [
            inspect.Parameter(
                names[bound.name],
                inspect.Parameter.KEYWORD_ONLY,
                default=bound.default,
                annotation=Annotated[
                    type(bound.default),
                    typer.Option(help=_HELP[names[bound.name]], rich_help_panel="Limits"),
                ],
            )
            for bound in fields(bounds)
        ]
        others = [p for p in signature.parameters.values() if p.name != argument]
        with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*others, *options]
        )
        with_options.__annotations__ = {p.name: p.annotation for p in [*others, *options]}
        return with_options

    return decorate
