#include "fields.h"

#include <cstring>

#include "log.h"

namespace dycoke {

namespace {

using nvinfer1::PluginFieldType;

constexpr std::string_view kMagic = "dycoke-fields 1\n";

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
Value value_of(std::string_view data, char const* name) {
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

// kMagic, then of each field: a head, its name, its data. Numbers as the machine has them: an engine
// never leaves its kind of machine.
struct Head {
  std::int32_t name, type, length;
};

std::size_t Fields::size() const {
  std::size_t bytes = kMagic.size();
  for (Field const& field : fields_) {
    bytes += sizeof(Head) + field.name.size() + field.data.size();
  }
  return bytes;
}

void Fields::write(char* bytes) const {
  auto put = [&](void const* data, std::size_t count) {
    std::memcpy(bytes, data, count);
    bytes += count;
  };
  put(kMagic.data(), kMagic.size());
  for (Field const& field : fields_) {
    Head const head{static_cast<std::int32_t>(field.name.size()),
                    static_cast<std::int32_t>(field.type), field.length};
    put(&head, sizeof(head));
    put(field.name.data(), field.name.size());
    put(field.data.data(), field.data.size());
  }
}

std::shared_ptr<Fields const> Fields::read(std::string_view bytes) {
  auto take = [&](std::size_t count) {
    if (count > bytes.size()) {
      throw Error("the engine's bytes of this plugin are cut off");
    }
    std::string_view const part = bytes.substr(0, count);
    bytes.remove_prefix(count);
    return part;
  };
  if (bytes.substr(0, kMagic.size()) != kMagic) {
    throw Error("the engine's bytes are not this plugin's; build the engine and the plugin from "
                "the same release");
  }
  take(kMagic.size());
  std::vector<std::string> names;
  std::vector<nvinfer1::PluginField> fields;
  while (!bytes.empty()) {
    Head head{};
    std::memcpy(&head, take(sizeof(head)).data(), sizeof(head));
    auto const type = static_cast<PluginFieldType>(head.type);
    if (head.name < 0 || head.length < 0 || size_of(type) == 0) {
      throw Error("the engine's bytes of this plugin are damaged");
    }
    names.emplace_back(take(static_cast<std::size_t>(head.name)));
    std::string_view const data = take(size_of(type) * static_cast<std::size_t>(head.length));
    fields.emplace_back(nullptr, data.data(), type, head.length);
  }
  for (std::size_t i = 0; i < fields.size(); ++i) {
    fields[i].name = names[i].c_str();
  }
  return std::make_shared<Fields const>(
      nvinfer1::PluginFieldCollection{static_cast<std::int32_t>(fields.size()), fields.data()});
}

std::string_view Fields::find(char const* name, PluginFieldType type) const {
  for (Field const& field : fields_) {
    if (field.name == name && field.type == type) {
      return field.data;
    }
  }
  throw Error("field '" + std::string(name) + "' is missing, or not of its type; build the engine "
              "and the plugin from the same release");
}

std::int32_t Fields::int32(char const* name) const {
  return value_of<std::int32_t>(find(name, PluginFieldType::kINT32), name);
}

std::int64_t Fields::int64(char const* name) const {
  return value_of<std::int64_t>(find(name, PluginFieldType::kINT64), name);
}

float Fields::float32(char const* name) const {
  return value_of<float>(find(name, PluginFieldType::kFLOAT32), name);
}

std::string_view Fields::bytes(char const* name) const {
  return find(name, PluginFieldType::kUNKNOWN);
}

}  // namespace dycoke
