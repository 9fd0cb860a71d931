// Generated from core/decisions.py by `python -m dycoke_trt.engines.plugin_header`; do not edit.
#pragma once

#include <array>
#include <cstdint>

namespace dycoke {

// What layers >= l attend to in a step of one row.
enum class Decision : std::int32_t { kFull = 0, kReuse = 1, kReselect = 2, kUnknown = 3 };
inline constexpr int kDecisions = 4;
// Of each decision, in the counters file.
inline constexpr std::array<char const*, kDecisions> kDecisionRows = {
    "full", "reused", "reselected", "unknown"};

// What a step does while its scores resemble the previous step's.
enum class GateMode : std::int32_t { kReuse = 0, kFull = 1, kAlways = 2, kOnce = 3 };
inline constexpr int kGateModes = 4;

}  // namespace dycoke
