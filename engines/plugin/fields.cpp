#include "fields.h"

#include <cstring>

#include "log.h"

namespace dycoke {

namespace {

using nvinfer1::PluginFieldType;

std::size_t size_of(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kINT32:
    case PluginFieldType::kFLOAT32:
      return 4;
    case PluginFieldType::kINT64:
      return 8;
    case PluginFieldType::kUNKNOWN:  // bytes
      return 1;
    default:
      return 0;
  }
}

template <class Value>
Value read(std::string_view data, char const* name) {
  Value value;
  if (data.size() != sizeof(value)) {
    throw Error("field '" + std::string(name) + "' holds " + std::to_string(data.size()) +
                " bytes, expected " + std::to_string(sizeof(value)));
  }
  std::memcpy(&value, data.data(), sizeof(value));
  return value;
}

}  // namespace

Fields::Fields(nvinfer1::PluginFieldCollection const& collection) {
  for (std::int32_t i = 0; i < collection.nbFields; ++i) {
    nvinfer1::PluginField const& field = collection.fields[i];
    std::size_t const size = size_of(field.type);
    if (size == 0 || field.length < 0 || (field.data == nullptr && field.length > 0)) {
      throw Error("field '" + std::string(field.name) + "' is of type " +
                  std::to_string(static_cast<int>(field.type)) + ", which no DyCoke plugin has");
    }
    std::string data(static_cast<char const*>(field.data),
                     size * static_cast<std::size_t>(field.length));
    fields_.push_back({field.name, field.type, std::move(data), field.length});
  }
  for (Field const& field : fields_) {
    views_.emplace_back(field.name.c_str(), field.data.data(), field.type, field.length);
  }
  view_.nbFields = static_cast<std::int32_t>(views_.size());
  view_.fields = views_.data();
}

std::string_view Fields::find(char const* name, PluginFieldType type) const {
  for (Field const& field : fields_) {
    if (field.name == name && field.type == type) {
      return field.data;
    }
  }
  throw Error("field '" + std::string(name) + "' is missing, or not of its type");
}

std::int32_t Fields::int32(char const* name) const {
  return read<std::int32_t>(find(name, PluginFieldType::kINT32), name);
}

std::int64_t Fields::int64(char const* name) const {
  return read<std::int64_t>(find(name, PluginFieldType::kINT64), name);
}

float Fields::float32(char const* name) const {
  return read<float>(find(name, PluginFieldType::kFLOAT32), name);
}

std::string_view Fields::bytes(char const* name) const {
  return find(name, PluginFieldType::kUNKNOWN);
}

}  // namespace dycoke
