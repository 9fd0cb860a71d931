"""RoPE's base from a config, under all names that transformers gave it.

transformers 4 keeps `rope_theta` beside `rope_scaling`; transformers 5 keeps both in
`rope_parameters` and takes `rope_scaling` for its old name
(modeling_rope_utils.py: convert_rope_params_to_dict).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_DEFAULT_THETA = 10_000.0  # transformers' default_theta
# "mrope" turns up as "default" in files that transformers 4 rewrote; its sections tell.
_KINDS = ("rope_type", "type")
_PLAIN = {*_KINDS, "rope_theta", "partial_rotary_factor"}


def rope_theta(text: Mapping[str, Any]) -> float:
    """The base, read as transformers 5 reads it. text: the language model's config.

    Raises ValueError(given, allowed) for every rotation but the plain one over the whole head, and
    for two sets of parameters that contradict each other.
    """
    named = {key: text[key] for key in ("rope_scaling", "rope_parameters") if text.get(key)}
    for key, value in named.items():
        if not isinstance(value, Mapping):
            raise ValueError(f"{key}={value!r}", "an object")
    if len(named) == 2 and dict(named["rope_scaling"]) != dict(named["rope_parameters"]):
        raise ValueError(
            f"rope_scaling={named['rope_scaling']} beside rope_parameters="
            f"{named['rope_parameters']}",
            "one of them",
        )
    key = next(iter(named), "rope_parameters")
    parameters: Mapping[str, Any] = named.get(key, {})
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    if kind != "default":
        raise ValueError(f"{key} of rope type {kind!r}", "default (no RoPE scaling)")
    if odd := sorted(k for k, v in parameters.items() if k not in _PLAIN and v is not None):
        raise ValueError(f"{key}.{odd[0]}={parameters[odd[0]]!r}", ", ".join(sorted(_PLAIN)))
    part = parameters.get("partial_rotary_factor", text.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise ValueError(f"partial_rotary_factor={part!r}", "1 (the whole head is rotated)")
    theta = parameters.get("rope_theta", text.get("rope_theta", _DEFAULT_THETA))
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
        raise ValueError(f"rope_theta={theta!r}", "a number > 0")
    return float(theta)
