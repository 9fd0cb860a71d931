"""How an answer is asked for, from tensors: under the client's names, or under the LLM step's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import DyCokeError
from ...runtime.protocol import ANSWER_INPUTS
from ...runtime.sampling import Sampling
from .requests import scalar

# By the client's names.
CLIENT_NAMES = {name: name for name in ANSWER_INPUTS}
LLM_NAMES = {name: spec.name for name, spec in ANSWER_INPUTS.items()}


def read_sampling(request: Any, names: Mapping[str, str]) -> Sampling:
    """Greedy unless asked otherwise. temperature 0 is greedy too, as OpenAI's clients mean it.

    A temperature or top_p without top_k samples from all tokens. Raises DyCokeError that begins
    with the tensor's name.
    """
    temperature, top_k, top_p, seed = (
        scalar(request, names[name]) for name in ("temperature", "top_k", "top_p", "seed")
    )
    if top_k is None:
        top_k = 1 if temperature is None and top_p is None else 0
    return Sampling(
        1.0 if temperature is None else temperature, top_k, 1.0 if top_p is None else top_p, seed
    )


def read_echo(request: Any, names: Mapping[str, str]) -> tuple[bool, bool]:
    """(streaming, whether the answer begins with the prompt), which exclude each other."""
    streaming = bool(scalar(request, names["stream"]))
    echo = scalar(request, names["exclude_input_in_output"]) is False
    if streaming and echo:
        raise DyCokeError("exclude_input_in_output: false has no effect on a stream; leave it out")
    return streaming, echo
