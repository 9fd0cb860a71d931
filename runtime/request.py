"""A generation request and what it yields: the contract of every LLM backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..core.errors import DyCokeError
from .sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["end", "stop", "length", "cancelled", "failed"]


class Event(NamedTuple):
    """New tokens of a request; `finish` is set on its last event, which comes exactly once.

    error: why it failed. A DyCokeError is what its owner can mend.
    """

    request_id: str
    tokens: list[int]
    finish: Finish | None
    error: Exception | None = None


@dataclass(frozen=True)
class Request:
    """One prompt to be continued.

    prompt: token ids; ids >= vocab size are visual tokens, rows of `embeddings` [V, hidden].
    end_ids: tokens that end the answer; stop: token sequences that end it. Neither is delivered.
    on_event: called from the thread that steps the engine; it must not block. One that raises ends
        its request as failed.
    """

    request_id: str
    prompt: list[int]
    max_tokens: int
    on_event: Callable[[Event], None]
    embeddings: Tensor | None = None
    sampling: Sampling = field(default_factory=Sampling)
    end_ids: frozenset[int] = frozenset()
    stop: tuple[tuple[int, ...], ...] = ()


def check_request(
    request: Request, *, vocab: int, positions: int, num_blocks: int, tokens_per_block: int
) -> None:
    """Raises DyCokeError for a request that an engine of these limits can never run.

    positions: the longest sequence; num_blocks: of the whole KV pool.
    """
    prompt = request.prompt
    if not prompt:
        raise DyCokeError("the prompt is empty; allowed: at least one token")
    if request.max_tokens < 1:
        raise DyCokeError(
            f"max_tokens={request.max_tokens} is not allowed; allowed: an integer >= 1"
        )
    rows = 0 if request.embeddings is None else len(request.embeddings)
    if min(prompt) < 0 or max(prompt) >= vocab + rows:
        raise DyCokeError(
            f"the prompt holds token id {min(prompt) if min(prompt) < 0 else max(prompt)}; "
            f"allowed: 0 <= id < {vocab}, and {rows} visual tokens from {vocab}"
        )
    if any(not stop for stop in request.stop):
        raise DyCokeError("an empty stop sequence is not allowed")
    check_length(
        len(prompt),
        request.max_tokens,
        positions=positions,
        num_blocks=num_blocks,
        tokens_per_block=tokens_per_block,
    )


def check_length(
    prompt: int, max_tokens: int, *, positions: int, num_blocks: int, tokens_per_block: int
) -> None:
    """Raises DyCokeError for a prompt of so many tokens and an answer that never fit together."""
    tokens = prompt + max_tokens
    if tokens > positions:
        raise DyCokeError(
            f"prompt {prompt} + max_tokens {max_tokens} = {tokens} tokens, the "
            f"model has {positions} positions; lower max_tokens or the number of frames"
        )
    need = -(-tokens // tokens_per_block)
    if need > num_blocks:
        raise DyCokeError(
            f"prompt {prompt} + max_tokens {max_tokens} tokens need {need} KV "
            f"blocks, the pool has {num_blocks}; lower max_tokens or the number "
            "of frames, or give the pool more blocks"
        )
