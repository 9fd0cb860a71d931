"""Decisions and gate modes as the plugin's C++ header, from core/decisions.py.

    python -m dycoke_trt.engines.plugin_header

writes engines/plugin/decisions.h anew; a test compares the two.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from ..core.decisions import Decision, GateMode

HEADER = Path(__file__).with_name("plugin") / "decisions.h"


def header() -> str:
    """The text of decisions.h."""
    rows = ", ".join(f'"{decision.row}"' for decision in Decision)
    return f"""\
// Generated from core/decisions.py by `python -m dycoke_trt.engines.plugin_header`; do not edit.
#pragma once

#include <array>
#include <cstdint>

namespace dycoke {{

// What layers >= l attend to in a step of one row.
{_enum(Decision)}
inline constexpr int kDecisions = {len(Decision)};
// Of each decision, in the counters file.
inline constexpr std::array<char const*, kDecisions> kDecisionRows = {{
    {rows}}};

// What a step does while its scores resemble the previous step's.
{_enum(GateMode)}
inline constexpr int kGateModes = {len(GateMode)};

}}  // namespace dycoke
"""


def _enum(kind: type[IntEnum]) -> str:
    members = ", ".join(f"k{member.name.capitalize()} = {member.value}" for member in kind)
    return f"enum class {kind.__name__} : std::int32_t {{ {members} }};"


if __name__ == "__main__":
    HEADER.write_text(header())
