// Loads an image into the current context and launches it with arguments checked against it.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <string_view>
#include <vector>

#include "images.h"

namespace dycoke {

// One kernel argument under the name that the manifest gives it.
class Argument {
 public:
  Argument(char const* name, void const* pointer) : Argument(name, &pointer, sizeof(pointer)) {
    pointer_ = true;
  }
  Argument(char const* name, std::int32_t value) : Argument(name, &value, sizeof(value)) {}
  Argument(char const* name, float value) : Argument(name, &value, sizeof(value)) {}

  char const* name() const { return name_; }
  int bytes() const { return bytes_; }
  bool misaligned() const { return pointer_ && bits_ % 16 != 0; }
  std::uint64_t const* bits() const { return &bits_; }

 private:
  Argument(char const* name, void const* value, int bytes) : name_(name), bytes_(bytes) {
    std::memcpy(&bits_, value, static_cast<std::size_t>(bytes));
  }

  char const* name_;
  std::uint64_t bits_ = 0;  // little-endian, like every GPU host: a prefix is the value
  int bytes_;
  bool pointer_ = false;
};

// Names in the manifest's grid and what they are in this step.
using Extents = std::initializer_list<std::pair<std::string_view, std::int64_t>>;

class Kernel {
 public:
  // Chooses and loads the image: not to be called in enqueue, where a graph may be recorded.
  Kernel(std::shared_ptr<Images const> images, std::string_view name);

  // Throws Error if names or sizes are not the image's, if a pointer is misaligned, or if the
  // driver refuses. An empty grid launches nothing.
  void launch(Extents extents, std::initializer_list<Argument> arguments, CUstream stream) const;

 private:
  // A number, or a name divided by a number, rounded up.
  struct Term {
    std::string name;
    std::int64_t number = 1;
  };

  std::shared_ptr<Images const> images_;
  Image const* image_;
  CUfunction function_;
  std::array<Term, 3> grid_;
};

}  // namespace dycoke
