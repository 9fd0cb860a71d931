#include "counters.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <set>
#include <thread>

#include "driver.h"
#include "log.h"

namespace dycoke {

namespace {

constexpr std::size_t kPage = 4096;

// Adds up all states of the process and writes the file. It is never destroyed, since engines may
// be destroyed after it would be; its thread runs while there is a state, so a library whose
// plugins are gone can be unloaded.
class Publisher {
 public:
  static Publisher& instance() {
    static auto* publisher = new Publisher;
    return *publisher;
  }

  std::string const& path() const { return path_; }

  void add(std::int64_t const* counts) {
    std::lock_guard<std::mutex> change(change_);
    std::lock_guard<std::mutex> lock(mutex_);
    sources_.insert(counts);
    if (!thread_.joinable()) {
      stop_ = false;
      thread_ = std::thread([this] { run(); });
    }
  }

  void remove(std::int64_t const* counts) {
    std::lock_guard<std::mutex> change(change_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      add_to(finished_, counts);
      sources_.erase(counts);
      stop_ = sources_.empty();
      write();
    }
    if (stop_) {
      wake_.notify_all();
      thread_.join();
    }
  }

 private:
  Publisher() {
    char const* name = std::getenv("DYCOKE_COUNTERS_FILE");
    path_ = name != nullptr ? name : "";
    std::size_t const place = path_.find("%p");
    if (place != std::string::npos) {
      path_.replace(place, 2, std::to_string(getpid()));
    }
  }

  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stop_) {
      write();
      wake_.wait_for(lock, std::chrono::seconds(1));
    }
  }

  static void add_to(Counts& total, std::int64_t const* counts) {
    for (std::size_t i = 0; i < total.size(); ++i) {
      // The GPU writes it; a copy of an aligned number is whole.
      total[i] += *const_cast<std::int64_t const volatile*>(counts + i);
    }
  }

  // A reader never sees half a file: the new one takes the old one's name.
  void write() {
    Counts total = finished_;
    for (std::int64_t const* source : sources_) {
      add_to(total, source);
    }
    if (written_ && total == last_) {
      return;
    }
    std::string const draft = path_ + "." + std::to_string(getpid()) + ".new";
    {
      std::ofstream file(draft);
      char const* before = "{\"rows\": {";
      for (std::size_t i = 0; i < kDecisionRows.size(); ++i) {
        file << before << '"' << kDecisionRows[i] << "\": " << total[i];
        before = ", ";
      }
      auto const of = [&](Decision decision) { return total[static_cast<std::size_t>(decision)]; };
      file << "}, \"pruned\": " << of(Decision::kReuse) + of(Decision::kReselect)
           << ", \"passed_through\": " << of(Decision::kFull) + of(Decision::kUnknown)
           << ", \"reorders\": " << total[kReorders] << ", \"moved\": " << total[kMoved] << "}\n";
    }
    if (std::rename(draft.c_str(), path_.c_str()) != 0 && !complained_) {
      complained_ = true;
      log(Severity::kWarning, "DYCOKE_COUNTERS_FILE: cannot write " + path_);
    }
    last_ = total;
    written_ = true;
  }

  std::mutex change_;  // of the states, and so of the thread
  std::mutex mutex_;   // of everything below
  std::condition_variable wake_;
  std::string path_;
  std::set<std::int64_t const*> sources_;
  Counts finished_{};
  Counts last_{};
  bool written_ = false;
  bool complained_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<PublishedCounters> PublishedCounters::create() {
  if (Publisher::instance().path().empty()) {
    return nullptr;
  }
  return std::unique_ptr<PublishedCounters>(new PublishedCounters());
}

PublishedCounters::PublishedCounters() {
  // Memory of the process, registered, rather than memory of the driver: the thread may read it
  // while the process ends and the driver is gone already.
  host_ = static_cast<std::int64_t*>(std::aligned_alloc(kPage, kPage));
  if (host_ == nullptr) {
    throw Error("out of memory");
  }
  std::fill_n(host_, Counts().size(), 0);
  CUresult const status = driver().cuMemHostRegister(host_, kPage, CU_MEMHOSTREGISTER_PORTABLE);
  if (status != CUDA_SUCCESS) {
    std::free(host_);
    check(status, "registering memory for counters");
  }
  Publisher::instance().add(host_);
}

PublishedCounters::~PublishedCounters() {
  Publisher::instance().remove(host_);
  driver().cuMemHostUnregister(host_);
  std::free(host_);
}

void PublishedCounters::copy(CUdeviceptr counts, CUstream stream) const {
  check(driver().cuMemcpyDtoHAsync(host_, counts, sizeof(Counts), stream), "copying the counters");
}

}  // namespace dycoke
