// What dynamic pruning remembers between steps, per physical KV block: the layout of core/state.py.
//
// One state serves every execution context of an engine (profiles have one each), so it is found by
// what they share, the address of the KV pool. It is allocated when a context is made, before any
// pool is known, and taken into use by the first step; contexts that find a state already in use
// keep theirs in reserve.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>

#include "counters.h"

namespace dycoke {

class DeviceState {
 public:
  // Blocks that this device's whole memory could hold if each takes `block_bytes`: more than any
  // pool has, for about a thousandth of its memory.
  static std::int64_t capacity_of_device(std::int64_t block_bytes);

  // Allocates and clears: not to be called in enqueue. averages: whether selection ranks averaged
  // scores, which take as much memory as the scores do.
  DeviceState(std::int64_t capacity, int tokens_per_block, bool averages);
  ~DeviceState();
  DeviceState(DeviceState const&) = delete;
  DeviceState& operator=(DeviceState const&) = delete;

  std::int32_t capacity() const { return static_cast<std::int32_t>(capacity_); }
  int tokens_per_block() const { return tokens_per_block_; }
  bool averages() const { return averages_; }
  void* scores() const { return at(scores_); }    // fp32 [capacity, B]
  void* average() const { return at(average_); }  // fp32 [capacity, B]; without averages: scores
  void* visual() const { return at(visual_); }    // u8 [capacity, B]
  void* keep() const { return at(keep_); }        // u8 [capacity]
  void* record() const { return at(record_); }    // i32 [capacity, 4]
  void* counters() const { return at(counters_); }  // i64, Counts

  // Behind the kernels of a step: makes the counters visible to the host, if anybody asked.
  void publish(CUstream stream) const;

 private:
  void* at(std::size_t offset) const {
    return reinterpret_cast<void*>(memory_ + static_cast<CUdeviceptr>(offset));
  }

  std::int64_t capacity_;
  int tokens_per_block_;
  bool averages_;
  std::size_t scores_, average_, visual_, keep_, record_, counters_;
  CUdeviceptr memory_ = 0;
  std::unique_ptr<PublishedCounters> published_;
};

// The state in use for a pool, or `reserve`, which is in use from then on.
std::shared_ptr<DeviceState> state_of_pool(void const* pool,
                                           std::shared_ptr<DeviceState> const& reserve);

}  // namespace dycoke
