// A plugin's life by either of its interfaces, in the calls that a builder and a runtime make.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "fake_tensorrt.h"

using namespace nvinfer1;

struct Tensor {
  std::int32_t rank;
  std::int64_t sizes[8];
  std::int32_t type;
  void* data;
};

inline std::vector<PluginTensorDesc> descriptions(Tensor const* tensors, int count) {
  std::vector<PluginTensorDesc> found(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    auto& one = found[static_cast<std::size_t>(i)];
    one.dims.nbDims = tensors[i].rank;
    std::copy(tensors[i].sizes, tensors[i].sizes + 8, one.dims.d);
    one.type = static_cast<DataType>(tensors[i].type);
    one.format = TensorFormat::kLINEAR;
    one.scale = 1;
  }
  return found;
}

inline std::vector<DynamicPluginTensorDesc> dynamic(Tensor const* tensors, int count) {
  std::vector<DynamicPluginTensorDesc> found;
  for (PluginTensorDesc const& desc : descriptions(tensors, count)) {
    DynamicPluginTensorDesc one{desc, desc.dims, desc.dims, desc.dims};
    for (int i = 0; i < desc.dims.nbDims; ++i) {
      one.desc.dims.d[i] = -1;  // known at run time
    }
    found.push_back(one);
  }
  return found;
}

// Where a combination is asked for: inputs before it are right, those behind it nonsense.
struct Place {
  int position, inputs, outputs;
};

class Life {
 public:
  virtual ~Life() = default;
  virtual Life* clone() = 0;
  virtual Life* attach() = 0;  // to an execution context; nullptr if the interface can say no
  virtual std::string bytes() = 0;
  virtual int outputs() = 0;
  virtual bool types(std::vector<DataType> const& in, std::vector<DataType>& out) = 0;
  virtual bool shapes(std::vector<DimsExprs> const& in, std::vector<DimsExprs>& out,
                      IExprBuilder& builder) = 0;
  virtual bool supports(Tensor const* tensors, Place place, DataType type, TensorFormat format) = 0;
  virtual int configure(Tensor const* tensors, int inputs, int outputs) = 0;
  virtual std::size_t workspace(Tensor const* tensors, int inputs, int outputs) = 0;
  virtual int enqueue(Tensor const* tensors, int inputs, int outputs, void const* const* in,
                      void* const* out, void* workspace) = 0;

 protected:
  template <class Tensors>
  static void poison(Tensors& list, int position) {
    for (std::size_t i = static_cast<std::size_t>(position) + 1; i < list.size(); ++i) {
      std::memset(static_cast<void*>(&list[i]), 0xee, sizeof(list[i]));
    }
  }
};

class LifeV3 final : public Life {
 public:
  static Life* of(IPluginV3* plugin) { return plugin != nullptr ? new LifeV3(plugin) : nullptr; }
  ~LifeV3() override { delete plugin_; }

  Life* clone() override { return of(plugin_->clone()); }
  Life* attach() override { return of(runtime()->attachToContext(nullptr)); }

  // The fields, as an engine's plan might hold them.
  std::string bytes() override {
    std::string bytes;
    PluginFieldCollection const* fields = runtime()->getFieldsToSerialize();
    for (std::int32_t i = 0; i < fields->nbFields; ++i) {
      PluginField const& field = fields->fields[i];
      int const wide = field.type == PluginFieldType::kUNKNOWN ? 1
                       : field.type == PluginFieldType::kINT64 ? 8
                                                               : 4;
      std::int32_t const head[] = {static_cast<std::int32_t>(std::strlen(field.name)),
                                   static_cast<std::int32_t>(field.type), field.length, wide};
      bytes.append(reinterpret_cast<char const*>(head), sizeof(head));
      bytes.append(field.name);
      bytes.append(static_cast<char const*>(field.data),
                   static_cast<std::size_t>(wide) * static_cast<std::size_t>(field.length));
    }
    return bytes;
  }
  static Life* from_bytes(IPluginCreatorV3One* creator, std::string const& copy) {
    std::vector<std::string> names;
    std::vector<std::vector<char>> values;
    std::vector<PluginField> fields;
    for (std::size_t place = 0; place < copy.size();) {
      std::int32_t head[4];
      std::memcpy(head, copy.data() + place, sizeof(head));
      place += sizeof(head);
      names.push_back(copy.substr(place, static_cast<std::size_t>(head[0])));
      place += static_cast<std::size_t>(head[0]);
      auto const bytes = static_cast<std::size_t>(head[2]) * static_cast<std::size_t>(head[3]);
      values.emplace_back(copy.data() + place, copy.data() + place + bytes);
      place += bytes;
      fields.emplace_back(nullptr, nullptr, static_cast<PluginFieldType>(head[1]), head[2]);
    }
    for (std::size_t i = 0; i < fields.size(); ++i) {
      fields[i].name = names[i].c_str();
      fields[i].data = values[i].data();
    }
    PluginFieldCollection const collection{static_cast<std::int32_t>(fields.size()), fields.data()};
    return of(creator->createPlugin("", &collection, TensorRTPhase::kRUNTIME));
  }

  int outputs() override { return build()->getNbOutputs(); }
  bool types(std::vector<DataType> const& in, std::vector<DataType>& out) override {
    return build()->getOutputDataTypes(out.data(), count(out), in.data(), count(in)) == 0;
  }
  bool shapes(std::vector<DimsExprs> const& in, std::vector<DimsExprs>& out,
              IExprBuilder& builder) override {
    return build()->getOutputShapes(in.data(), count(in), nullptr, 0, out.data(), count(out),
                                    builder) == 0;
  }
  bool supports(Tensor const* tensors, Place place, DataType type, TensorFormat format) override {
    auto list = dynamic(tensors, place.inputs + place.outputs);
    poison(list, place.position);
    auto& desc = list[static_cast<std::size_t>(place.position)].desc;
    desc.type = type;
    desc.format = format;
    return build()->supportsFormatCombination(place.position, list.data(), place.inputs,
                                              place.outputs);
  }
  int configure(Tensor const* tensors, int inputs, int outputs) override {
    auto const list = dynamic(tensors, inputs + outputs);
    return build()->configurePlugin(list.data(), inputs, list.data() + inputs, outputs);
  }
  std::size_t workspace(Tensor const* tensors, int inputs, int outputs) override {
    auto const list = dynamic(tensors, inputs + outputs);
    return build()->getWorkspaceSize(list.data(), inputs, list.data() + inputs, outputs);
  }
  int enqueue(Tensor const* tensors, int inputs, int outputs, void const* const* in,
              void* const* out, void* workspace) override {
    auto const list = descriptions(tensors, inputs + outputs);
    if (runtime()->onShapeChange(list.data(), inputs, list.data() + inputs, outputs) != 0) {
      return -2;
    }
    return runtime()->enqueue(list.data(), list.data() + inputs, in, out, workspace, nullptr);
  }

 private:
  explicit LifeV3(IPluginV3* plugin) : plugin_(plugin) {}
  template <class Values>
  static std::int32_t count(Values const& values) {
    return static_cast<std::int32_t>(values.size());
  }
  IPluginV3OneBuild* build() {
    return static_cast<IPluginV3OneBuild*>(
        plugin_->getCapabilityInterface(PluginCapabilityType::kBUILD));
  }
  IPluginV3OneRuntime* runtime() {
    return static_cast<IPluginV3OneRuntime*>(
        plugin_->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  }

  IPluginV3* plugin_;
};

class LifeV2 final : public Life {
 public:
  static Life* of(IPluginV2* plugin) {
    return plugin != nullptr ? new LifeV2(static_cast<IPluginV2DynamicExt*>(plugin)) : nullptr;
  }
  ~LifeV2() override {
    plugin_->terminate();
    plugin_->destroy();
  }

  Life* clone() override { return of(plugin_->clone()); }
  Life* attach() override {
    IPluginV2DynamicExt* copy = plugin_->clone();
    copy->attachToContext(nullptr, nullptr, nullptr);
    copy->attachToContext(nullptr, nullptr, nullptr);  // as when new resources are assigned
    return of(copy);
  }
  std::string bytes() override {
    std::size_t const size = plugin_->getSerializationSize();
    std::string bytes(size + 8, '\x5a');
    plugin_->serialize(bytes.data());
    if (bytes.substr(size) != std::string(8, '\x5a')) {
      return "it wrote more than it said";
    }
    bytes.resize(size);
    return bytes;
  }
  static Life* from_bytes(IPluginCreator* creator, std::string const& bytes) {
    Life* life = of(creator->deserializePlugin("", bytes.data(), bytes.size()));
    if (life != nullptr) {
      static_cast<LifeV2*>(life)->plugin_->initialize();
    }
    return life;
  }

  int outputs() override { return plugin_->getNbOutputs(); }
  bool types(std::vector<DataType> const& in, std::vector<DataType>& out) override {
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = plugin_->getOutputDataType(static_cast<std::int32_t>(i), in.data(),
                                          static_cast<std::int32_t>(in.size()));
    }
    return true;
  }
  bool shapes(std::vector<DimsExprs> const& in, std::vector<DimsExprs>& out,
              IExprBuilder& builder) override {
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = plugin_->getOutputDimensions(static_cast<std::int32_t>(i), in.data(),
                                            static_cast<std::int32_t>(in.size()), builder);
      if (out[i].nbDims < 0) {
        return false;
      }
    }
    return true;
  }
  bool supports(Tensor const* tensors, Place place, DataType type, TensorFormat format) override {
    auto list = descriptions(tensors, place.inputs + place.outputs);
    poison(list, place.position);
    auto& desc = list[static_cast<std::size_t>(place.position)];
    desc.type = type;
    desc.format = format;
    return plugin_->supportsFormatCombination(place.position, list.data(), place.inputs,
                                              place.outputs);
  }
  int configure(Tensor const* tensors, int inputs, int outputs) override {
    auto const list = dynamic(tensors, inputs + outputs);
    plugin_->configurePlugin(list.data(), inputs, list.data() + inputs, outputs);
    return 0;
  }
  std::size_t workspace(Tensor const* tensors, int inputs, int outputs) override {
    auto const list = descriptions(tensors, inputs + outputs);
    return plugin_->getWorkspaceSize(list.data(), inputs, list.data() + inputs, outputs);
  }
  int enqueue(Tensor const* tensors, int inputs, int outputs, void const* const* in,
              void* const* out, void* workspace) override {
    auto const list = descriptions(tensors, inputs + outputs);
    return plugin_->enqueue(list.data(), list.data() + inputs, in, out, workspace, nullptr);
  }

 private:
  explicit LifeV2(IPluginV2DynamicExt* plugin) : plugin_(plugin) {}

  IPluginV2DynamicExt* plugin_;
};
