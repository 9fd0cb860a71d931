"""What a decode step may do with a sequence, and when it selects anew.

The numbers are the ABI of kernels, state, plugin and engines that were built: they never change.
engines/plugin/decisions.h is generated from this file (engines/plugin_header.py).
"""

from __future__ import annotations

from enum import IntEnum


class Decision(IntEnum):
    """What layers >= l attend to in a step of one sequence."""

    FULL = 0  # everything
    REUSE = 1  # the selection of an earlier step
    RESELECT = 2  # this step's selection
    UNKNOWN = 3  # everything: the state is not this sequence's (core/state.py)

    @property
    def label(self) -> str:
        """In metrics."""
        return self.name.lower()

    @property
    def row(self) -> str:
        """In the plugin's counters file."""
        return {"REUSE": "reused", "RESELECT": "reselected"}.get(self.name, self.label)


class GateMode(IntEnum):
    """What a step does while its scores resemble the previous step's."""

    REUSE = 0  # keeps the selection (paper)
    FULL = 1  # attends to everything (released code)
    ALWAYS = 2  # selects anew
    ONCE = 3  # keeps the first selection, whatever the scores say

    @property
    def label(self) -> str:
        """In a `DyCokeConfig`."""
        return self.name.lower()
