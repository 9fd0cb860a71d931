"""Metrics that outlive the process which made them.

While a model is loaded again there are two processes of it, and the server gives both the same
counter. It dies with the first of them, because references to it are counted for each process alone
(core, metric_family.cc, Remove: seen on 2.51, the same in 2026), and what the other one counts next
ends the server with signal 11. So the families are kept here until the process leaves, which it
does without destroying anything (alive.py). A counter goes on where an earlier process left it; a
gauge has to be changed by differences and brought back to 0 at the end.
"""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

_KEPT: list[Any] = []  # a metric dies with its family


def new_family(name: str, description: str, kind: object) -> pb_utils.MetricFamily:
    """kind: one of MetricFamily's."""
    family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
    _KEPT.append(family)
    return family
