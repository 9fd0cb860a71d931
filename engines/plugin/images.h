// Kernel images as an engine carries them: one plugin field, a few lines of text and then the code.
//
//   dycoke-images 1 bfloat16
//   image logits sm_90 logits_kernel warps 4 shared 8192 hidden 2 bytes 23456 grid rows 4 splits
//   parameter qkv 8 aligned
//   parameter layer 4 any
//   constant HEADS 28
//   ...
//   end
//   <code of the first image><code of the second>...
//
// engines/plugin_fields.py writes it from the manifest of kernels/aot.py.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dycoke {

struct Parameter {
  std::string name;
  int bytes = 0;
  bool aligned = false;  // the pointer must be a multiple of 16
};

struct Image {
  std::string name;    // of the kernel's part in the plugin: logits, select, ...
  std::string target;  // sm_90, or ptx
  std::string entry;
  int warps = 0;
  int shared_bytes = 0;
  int hidden = 0;  // pointers that follow the parameters, all null
  std::array<std::string, 3> grid;
  std::vector<Parameter> parameters;
  std::map<std::string, int> constants;
  std::string code;
};

class Images {
 public:
  // Throws Error for anything that is not what images.h describes.
  static std::shared_ptr<Images const> parse(std::string_view pack);

  std::string const& dtype() const { return dtype_; }
  bool has(std::string_view name) const;
  // Of any image of that kernel: all targets have the same. Throws Error if there is none.
  int constant(std::string_view name, std::string const& constant) const;
  // The best image for a GPU: its own cubin; below sm_90 one of the same major and a lower minor
  // number, which such GPUs run too; else PTX. Throws Error where none will run.
  Image const& choose(std::string_view name, int sm) const;

 private:
  std::string dtype_;
  std::vector<Image> images_;
};

}  // namespace dycoke
