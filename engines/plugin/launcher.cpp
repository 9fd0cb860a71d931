#include "launcher.h"

#include <map>
#include <mutex>

#include "driver.h"
#include "log.h"

namespace dycoke {

namespace {

constexpr int kSharedWithoutAsking = 48 << 10;
constexpr int kMostParameters = 40;

// Modules belong to a context and are never unloaded: an engine has a rotary node per pruned layer,
// and all of them share one.
CUfunction load(Image const& image) {
  static std::mutex mutex;
  static std::map<std::pair<CUcontext, std::string>, CUmodule> modules;
  std::lock_guard<std::mutex> lock(mutex);
  auto key = std::make_pair(current_context(), image.code);
  auto found = modules.find(key);
  std::string const what = image.name + " for " + image.target;
  if (found == modules.end()) {
    CUmodule module = nullptr;
    check(driver().cuModuleLoadData(&module, image.code.c_str()), ("loading " + what).c_str());
    found = modules.emplace(std::move(key), module).first;
  }
  CUfunction function = nullptr;
  check(driver().cuModuleGetFunction(&function, found->second, image.entry.c_str()),
        (image.entry + " in " + what).c_str());
  return function;
}

// A parameter array that is too short is undefined behaviour, so the image itself is asked.
void check_parameters(Image const& image, CUfunction function) {
  auto param_info = driver().param_info;
  if (param_info == nullptr) {
    return;
  }
  std::size_t const named = image.parameters.size();
  std::size_t const total = named + static_cast<std::size_t>(image.hidden);
  std::size_t offset = 0, bytes = 0;
  for (std::size_t i = 0; i < total; ++i) {
    std::size_t const expected =
        i < named ? static_cast<std::size_t>(image.parameters[i].bytes) : sizeof(void*);
    if (param_info(function, i, &offset, &bytes) != CUDA_SUCCESS || bytes != expected) {
      throw Error("kernel " + image.name + " for " + image.target + ": parameter " +
                  std::to_string(i) + " has " + std::to_string(bytes) +
                  " bytes in the image, the engine says " + std::to_string(expected));
    }
  }
  if (param_info(function, total, &offset, &bytes) == CUDA_SUCCESS) {
    throw Error("kernel " + image.name + " for " + image.target + " has more than the " +
                std::to_string(total) + " parameters that the engine says");
  }
}

}  // namespace

Kernel::Kernel(std::shared_ptr<Images const> images, std::string_view name)
    : images_(std::move(images)),
      image_(&images_->choose(name, current_sm())),
      function_(load(*image_)) {
  if (image_->parameters.size() + static_cast<std::size_t>(image_->hidden) > kMostParameters) {
    throw Error("kernel " + image_->name + " has too many parameters");
  }
  check_parameters(*image_, function_);
  if (image_->shared_bytes > kSharedWithoutAsking) {
    check(driver().cuFuncSetAttribute(function_, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                      image_->shared_bytes),
          ("shared memory of " + image_->name).c_str());
  }
  for (std::size_t axis = 0; axis < grid_.size(); ++axis) {
    std::string const& text = image_->grid[axis];
    std::size_t const slash = text.find('/');
    bool const number = text.find_first_not_of("0123456789") == std::string::npos;
    grid_[axis].name = number ? "" : text.substr(0, slash);
    if (number || slash != std::string::npos) {
      grid_[axis].number = std::atoll(text.c_str() + (number ? 0 : slash + 1));
    }
    if (grid_[axis].number < 1) {
      throw Error("kernel " + image_->name + " has a grid of '" + text + "'");
    }
  }
}

void Kernel::launch(Extents extents, std::initializer_list<Argument> arguments,
                    CUstream stream) const {
  std::array<unsigned, 3> grid{};
  for (std::size_t axis = 0; axis < grid.size(); ++axis) {
    Term const& term = grid_[axis];
    std::int64_t size = term.number;
    if (!term.name.empty()) {
      size = -1;
      for (auto const& [name, value] : extents) {
        if (name == term.name) {
          size = (value + term.number - 1) / term.number;
        }
      }
    }
    if (size < 0 || (axis > 0 && size > 65535)) {
      throw Error("kernel " + image_->name + ": its grid needs '" + image_->grid[axis] + "'");
    }
    grid[axis] = static_cast<unsigned>(size);
  }
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) {
    return;
  }

  static constexpr void* kNothing = nullptr;
  std::array<void*, kMostParameters> values;
  if (arguments.size() != image_->parameters.size()) {
    throw Error("kernel " + image_->name + " takes " + std::to_string(image_->parameters.size()) +
                " arguments, the plugin passes " + std::to_string(arguments.size()));
  }
  std::size_t count = 0;
  for (Argument const& argument : arguments) {
    Parameter const& parameter = image_->parameters[count];
    if (parameter.name != argument.name() || parameter.bytes != argument.bytes()) {
      throw Error("kernel " + image_->name + ": argument " + std::to_string(count) + " is " +
                  parameter.name + " of " + std::to_string(parameter.bytes) +
                  " bytes, the plugin passes " + argument.name() + " of " +
                  std::to_string(argument.bytes()));
    }
    if (parameter.aligned && argument.misaligned()) {
      throw Error("kernel " + image_->name + ": " + parameter.name + " is not 16-byte aligned");
    }
    values[count++] = const_cast<std::uint64_t*>(argument.bits());
  }
  for (int i = 0; i < image_->hidden; ++i) {
    values[count++] = const_cast<void**>(&kNothing);
  }
  check(driver().cuLaunchKernel(function_, grid[0], grid[1], grid[2],
                                32U * static_cast<unsigned>(image_->warps), 1, 1,
                                static_cast<unsigned>(image_->shared_bytes), stream, values.data(),
                                nullptr),
        ("launching " + image_->name).c_str());
}

}  // namespace dycoke
