// How often each decision was taken, published to the file that DYCOKE_COUNTERS_FILE names.
//
// The device counts; every step copies its four numbers into registered host memory, in the stream
// (and so in a recorded graph too); a thread that never calls CUDA writes them out once a second.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>
#include <memory>

#include "decisions.h"

namespace dycoke {

// By Decision.
using Counts = std::array<std::int64_t, kDecisions>;

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
