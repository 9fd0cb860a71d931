#include "log.h"

#include <atomic>
#include <cstdio>

namespace dycoke {

namespace {

std::atomic<LogSink> current_sink{nullptr};

}  // namespace

void set_log_sink(LogSink sink) noexcept { current_sink = sink; }

void log(Severity severity, std::string const& message) noexcept {
  if (LogSink sink = current_sink) {
    sink(severity, message.c_str());
    return;
  }
  char const* level = severity == Severity::kError     ? "error"
                      : severity == Severity::kWarning ? "warning"
                                                       : "info";
  std::fprintf(stderr, "dycoke plugin: %s: %s\n", level, message.c_str());
}

}  // namespace dycoke
