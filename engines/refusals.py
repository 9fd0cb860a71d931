"""Options of TensorRT-LLM that do not go together with dynamic pruning: one line each.

Names are those of trtllm-build and of the Triton backend's parameters. Why: a selection is made per
sequence and step from K and V in the pool, which must be that sequence's alone and in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import DyCokeError

_Rule = tuple[Callable[[Any], bool], str, str]


def _more_than(most: int) -> Callable[[Any], bool]:
    return lambda value: value is not None and int(value) > most


def _is_true(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "enable")


def _is_given(value: Any) -> bool:
    return value not in (None, "", 0, "0", False, "none", "disable")


# option: (when it is refused, what is allowed, why)
_RULES: dict[str, _Rule] = {
    "granularity": (lambda value: value != "block", "block", "engines leave out whole KV blocks"),
    "enable_kv_cache_reuse": (
        _is_true, "false", "reused blocks hold K and V of other selections, and their visual "
        "tokens were never seen",
    ),
    "max_beam_width": (_more_than(1), "1", "beams share blocks, so they cannot select each alone"),
    "pp_size": (_more_than(1), "1", "the selection does not travel between pipeline stages"),
    "cp_size": (_more_than(1), "1", "context parallel ranks hold parts of a sequence"),
    "max_draft_len": (_more_than(0), "0", "speculative decoding feeds several tokens per step"),
    "speculative_decoding_mode": (
        _is_given, "none", "speculative decoding feeds several tokens per step"
    ),
    "max_attention_window_size": (
        _is_given, "unset", "a sliding window counts from the shortened length"
    ),
    "sink_token_length": (_is_given, "unset", "a sliding window counts from the shortened length"),
    "streamingllm": (_is_true, "disable", "a sliding window counts from the shortened length"),
    "batch_scheduler_policy": (
        lambda value: value not in (None, "guaranteed_no_evict"), "guaranteed_no_evict",
        "a paused request is computed again, and pruned steps cannot be repeated",
    ),
}  # fmt: skip


def refuse(options: Mapping[str, Any], *, where: str) -> None:
    """Raises DyCokeError for the first option that cannot be, with its value and the allowed one.

    where: what the options are of. Options that no rule names pass.
    """
    for name, value in options.items():
        if name not in _RULES:
            continue
        refused, allowed, reason = _RULES[name]
        if refused(value):
            raise DyCokeError(
                f"{where}: {name}={value} does not go with DyCoke ({reason}); "
                f"allowed: {allowed}, or a bundle exported with --p 0"
            )
