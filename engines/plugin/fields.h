// The fields of a plugin: its own copy of what a creator was given, and what an engine stores.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dycoke {

// Neither copied nor moved: TensorRT's view of it points into it. Clones of a plugin share one.
class Fields {
 public:
  // Copies, since TensorRT's collection lives only as long as the call. Throws Error for a type
  // that no plugin of ours has.
  explicit Fields(nvinfer1::PluginFieldCollection const& collection);
  // What `write` wrote. Throws Error for anything else.
  static std::shared_ptr<Fields const> read(std::string_view bytes);
  Fields(Fields const&) = delete;
  Fields& operator=(Fields const&) = delete;

  // Throw Error if the field is missing or of another type.
  std::int32_t int32(char const* name) const;
  std::int64_t int64(char const* name) const;
  float float32(char const* name) const;
  std::string_view bytes(char const* name) const;

  // Valid as long as this object.
  nvinfer1::PluginFieldCollection const* collection() const { return &view_; }
  // The fields as bytes, for engines that keep a plugin as such: `size` of them.
  std::size_t size() const;
  void write(char* bytes) const;

 private:
  std::string_view find(char const* name, nvinfer1::PluginFieldType type) const;

  struct Field {
    std::string name;
    nvinfer1::PluginFieldType type;
    std::string data;
    std::int32_t length;
  };
  std::vector<Field> fields_;
  std::vector<nvinfer1::PluginField> views_;
  nvinfer1::PluginFieldCollection view_{};
};

}  // namespace dycoke
