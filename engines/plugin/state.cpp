#include "state.h"

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>

#include "driver.h"
#include "log.h"

namespace dycoke {

namespace {

// Each part begins where wide loads may begin.
std::size_t place(std::size_t& end, std::size_t bytes) {
  std::size_t const begin = (end + 255) / 256 * 256;
  end = begin + bytes;
  return begin;
}

}  // namespace

std::int64_t DeviceState::capacity_of_device(std::int64_t block_bytes) {
  if (block_bytes < 1) {
    throw Error("block_bytes is " + std::to_string(block_bytes) + ", expected the size of a block");
  }
  CUdevice device = 0;
  std::size_t memory = 0;
  check(driver().cuCtxGetDevice(&device), "cuCtxGetDevice");
  check(driver().cuDeviceTotalMem(&memory, device), "cuDeviceTotalMem");
  std::int64_t const blocks = static_cast<std::int64_t>(memory) / block_bytes;
  return std::clamp<std::int64_t>(blocks, 1, std::numeric_limits<std::int32_t>::max());
}

DeviceState::DeviceState(std::int64_t capacity, int tokens_per_block, bool averages)
    : capacity_(capacity), tokens_per_block_(tokens_per_block), averages_(averages) {
  auto const blocks = static_cast<std::size_t>(capacity);
  auto const tokens = blocks * static_cast<std::size_t>(tokens_per_block);
  std::size_t end = 0;
  scores_ = place(end, tokens * sizeof(float));
  average_ = averages ? place(end, tokens * sizeof(float)) : scores_;
  visual_ = place(end, tokens);
  keep_ = place(end, blocks);
  record_ = place(end, blocks * 4 * sizeof(std::int32_t));
  counters_ = place(end, sizeof(Counts));
  published_ = PublishedCounters::create();
  check(driver().cuMemAlloc(&memory_, end), "allocating the pruning state");
  // A prompt length of 0 matches no sequence, so a cleared state knows nobody.
  CUresult const status = driver().cuMemsetD8(memory_, 0, end);
  if (status != CUDA_SUCCESS) {
    driver().cuMemFree(memory_);
    check(status, "clearing the pruning state");
  }
}

DeviceState::~DeviceState() {
  driver().cuMemFree(memory_);  // fails where the process ends and the driver is gone: no matter
}

void DeviceState::publish(CUstream stream) const {
  if (published_ != nullptr) {
    published_->copy(memory_ + static_cast<CUdeviceptr>(counters_), stream);
  }
}

std::shared_ptr<DeviceState> state_of_pool(void const* pool,
                                           std::shared_ptr<DeviceState> const& reserve) {
  // Pools of several executors lie in several places; a freed pool's state went with its engine.
  using Key = std::tuple<CUcontext, void const*, std::int32_t, int, bool>;
  static std::mutex mutex;
  static std::map<Key, std::weak_ptr<DeviceState>> in_use;
  std::lock_guard<std::mutex> lock(mutex);
  Key const key{current_context(), pool, reserve->capacity(), reserve->tokens_per_block(),
                reserve->averages()};
  std::weak_ptr<DeviceState>& found = in_use[key];
  if (std::shared_ptr<DeviceState> shared = found.lock()) {
    return shared;
  }
  for (auto const& [other, weak] : in_use) {
    if (other != key && weak.lock() == reserve) {
      throw Error("the KV pool moved while the engine was in use; make its execution contexts anew");
    }
  }
  found = reserve;
  return reserve;
}

}  // namespace dycoke
