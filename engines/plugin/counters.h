// How often each decision was taken, in how many rows a selection moved tokens, and how many tokens,
// published to the file that DYCOKE_COUNTERS_FILE names.
//
// The device counts; every step copies its few numbers into registered host memory, in the stream
// (and so in a recorded graph too); a thread that never calls CUDA writes them out once a second.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>
#include <memory>

#include "decisions.h"

namespace dycoke {

// By Decision, then what an order of importance moved: rows of a step, and tokens.
using Counts = std::array<std::int64_t, kDecisions + 2>;
inline constexpr std::size_t kReorders = kDecisions, kMoved = kDecisions + 1;

class PublishedCounters {
 public:
  // nullptr if nobody asked: DYCOKE_COUNTERS_FILE is not set. "%p" in it is the process's id.
  static std::unique_ptr<PublishedCounters> create();
  ~PublishedCounters();
  PublishedCounters(PublishedCounters const&) = delete;
  PublishedCounters& operator=(PublishedCounters const&) = delete;

  // Copies the device's counts, int64 each, behind what the stream holds so far.
  void copy(CUdeviceptr counts, CUstream stream) const;

 private:
  PublishedCounters();

  std::int64_t* host_ = nullptr;
};

}  // namespace dycoke
