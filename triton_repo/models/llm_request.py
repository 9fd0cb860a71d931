"""The tensors of one request to the LLM step, read and checked."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import torch

from ...core.errors import DyCokeError
from ...runtime.protocol import PROMPT_TABLE
from ...runtime.sampling import Sampling
from ...runtime.stop_words import unpack_words
from .requests import array, scalar, wants_errors_as_output
from .sampling_inputs import LLM_NAMES, read_echo, read_sampling
from .torch_tensors import torch_array

# Squares of embeddings are added up in fp32, and must stay finite. What a vision tower makes is
# below 1,000.
MOST_MAGNITUDE = 2.0**50
MOST_STOP_TOKENS = 65_536  # of all stop sequences; 64 stop words of 256 bytes have half of that


@dataclass(frozen=True)
class LlmRequest:
    """What a client asks of the LLM step. echo: the answer begins with the prompt."""

    request_id: str
    prompt: list[int]
    max_tokens: int
    embeddings: torch.Tensor | None
    sampling: Sampling
    end_ids: frozenset[int]
    stop: tuple[tuple[int, ...], ...]
    streaming: bool
    echo: bool
    count_input: bool
    count_output: bool
    errors_as_output: bool


def read_llm_request(request: Any) -> LlmRequest:
    """Raises DyCokeError that begins with the tensor's name."""
    ids, length = array(request, "input_ids"), scalar(request, "input_lengths")
    if ids is None:
        raise DyCokeError("input_ids: missing; only a request with stop=true has no prompt")
    if ids.ndim != 2 or length != ids.shape[1]:
        raise DyCokeError(f"input_lengths: {length}, input_ids has shape {list(ids.shape)}")
    streaming, echo = read_echo(request, LLM_NAMES)
    end, stop = scalar(request, "end_id"), array(request, "stop_words_list")
    if stop is not None and stop.size > 2 * MOST_STOP_TOKENS:
        raise DyCokeError(
            f"stop_words_list: {stop.size // 2} tokens; allowed: up to {MOST_STOP_TOKENS}"
        )
    return LlmRequest(
        request_id=request.request_id() or uuid.uuid4().hex,
        prompt=ids[0].tolist(),
        max_tokens=scalar(request, "request_output_len"),
        embeddings=_embeddings(request),
        sampling=read_sampling(request, LLM_NAMES),
        end_ids=frozenset() if end is None else frozenset([end]),
        stop=() if stop is None else unpack_words(stop),
        streaming=streaming,
        echo=echo,
        count_input=bool(scalar(request, "return_num_input_tokens")),
        count_output=bool(scalar(request, "return_num_output_tokens")),
        errors_as_output=wants_errors_as_output(request),
    )


def _embeddings(request: Any) -> torch.Tensor | None:
    """[V, hidden], a copy: the request's memory goes back to the server."""
    table, rows = torch_array(request, PROMPT_TABLE), scalar(request, "prompt_vocab_size")
    if table is None:
        if rows:
            raise DyCokeError(f"prompt_vocab_size: {rows}, but there is no {PROMPT_TABLE}")
        return None
    if table.ndim != 3 or (rows is not None and rows != table.shape[1]):
        raise DyCokeError(f"prompt_vocab_size: {rows}, {PROMPT_TABLE} is {list(table.shape)}")
    if table.numel():
        low, high = (float(value) for value in table.aminmax())
        if not max(-low, high) <= MOST_MAGNITUDE:  # NaN is neither
            raise DyCokeError(
                f"{PROMPT_TABLE}: values from {low} to {high}; allowed: finite numbers up to "
                f"{MOST_MAGNITUDE:g}"
            )
    return table[0].clone()
