"""The tensors of one request to the LLM step, read and checked."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from ...core.errors import DyCokeError
from ...runtime.native.sampling import Sampling
from ...runtime.preparation import unpack_words
from ...runtime.protocol import PROMPT_TABLE
from .requests import array, scalar


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


def read_llm_request(request: Any) -> LlmRequest:
    """Raises DyCokeError that begins with the tensor's name."""
    ids, length = array(request, "input_ids"), scalar(request, "input_lengths")
    if ids is None:
        raise DyCokeError("input_ids: missing; only a request with stop=true has no prompt")
    if ids.ndim != 2 or length != ids.shape[1]:
        raise DyCokeError(f"input_lengths: {length}, input_ids has shape {list(ids.shape)}")
    streaming = bool(scalar(request, "streaming"))
    echo = scalar(request, "exclude_input_in_output") is False
    if streaming and echo:
        raise DyCokeError("exclude_input_in_output: false has no effect on a stream; leave it out")
    end, stop = scalar(request, "end_id"), array(request, "stop_words_list")
    return LlmRequest(
        request_id=request.request_id() or uuid.uuid4().hex,
        prompt=ids[0].tolist(),
        max_tokens=scalar(request, "request_output_len"),
        embeddings=_embeddings(request),
        sampling=_sampling(request),
        end_ids=frozenset() if end is None else frozenset([end]),
        stop=() if stop is None else unpack_words(stop),
        streaming=streaming,
        echo=echo,
        count_input=bool(scalar(request, "return_num_input_tokens")),
        count_output=bool(scalar(request, "return_num_output_tokens")),
    )


def _embeddings(request: Any) -> torch.Tensor | None:
    """[V, hidden] as it came, a copy: the request's memory goes back to the server."""
    given = pb_utils.get_input_tensor_by_name(request, PROMPT_TABLE)
    rows = scalar(request, "prompt_vocab_size")
    if given is None:
        if rows:
            raise DyCokeError(f"prompt_vocab_size: {rows}, but there is no {PROMPT_TABLE}")
        return None
    table = from_dlpack(given.to_dlpack())  # numpy has no bfloat16
    if table.ndim != 3 or (rows is not None and rows != table.shape[1]):
        raise DyCokeError(f"prompt_vocab_size: {rows}, {PROMPT_TABLE} is {list(table.shape)}")
    return table[0].clone()


def _sampling(request: Any) -> Sampling:
    """Greedy unless asked otherwise. temperature 0 is greedy too, as OpenAI's clients mean it.

    A temperature or top_p without top_k samples from all tokens.
    """
    temperature, top_k, top_p, seed = (
        scalar(request, name) for name in ("temperature", "runtime_top_k", "runtime_top_p", "seed")
    )
    if top_k is None:
        top_k = 1 if temperature is None and top_p is None else 0
    if temperature == 0:
        temperature, top_k = None, 1
    return Sampling(
        1.0 if temperature is None else temperature, top_k, 1.0 if top_p is None else top_p, seed
    )
