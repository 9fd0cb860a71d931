// One-line messages: to TensorRT's logger once one is known, to stderr before that.
#pragma once

#include <stdexcept>
#include <string>

namespace dycoke {

enum class Severity { kError, kWarning, kInfo };

using LogSink = void (*)(Severity severity, char const* message);

// nullptr restores stderr.
void set_log_sink(LogSink sink) noexcept;

void log(Severity severity, std::string const& message) noexcept;

// Everything that can go wrong, in words. Caught where TensorRT calls in, logged, and turned into
// the status that TensorRT expects: an exception must not cross a library's border.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace dycoke
