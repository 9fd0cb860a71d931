#include "plugin_v3.h"

#include "log.h"

namespace dycoke {

using nvinfer1::PluginCapabilityType;

nvinfer1::IPluginCapability* PluginV3::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* PluginV3::clone() noexcept {
  return made(adapted_.kind(), "cloning", [&] { return new PluginV3(adapted_); });
}

std::int32_t PluginV3::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in,
                                       std::int32_t inputs,
                                       nvinfer1::DynamicPluginTensorDesc const*,
                                       std::int32_t outputs) noexcept {
  return adapted_.configure(in, inputs, outputs) ? 0 : -1;
}

std::int32_t PluginV3::getOutputDataTypes(nvinfer1::DataType* types, std::int32_t outputs,
                                          nvinfer1::DataType const*,
                                          std::int32_t inputs) const noexcept {
  return adapted_.types(types, outputs, inputs) ? 0 : -1;
}

std::int32_t PluginV3::getOutputShapes(nvinfer1::DimsExprs const* in, std::int32_t inputs,
                                       nvinfer1::DimsExprs const*, std::int32_t,
                                       nvinfer1::DimsExprs* out, std::int32_t outputs,
                                       nvinfer1::IExprBuilder& builder) noexcept {
  return adapted_.shapes(in, inputs, out, outputs, builder) ? 0 : -1;
}

bool PluginV3::supportsFormatCombination(std::int32_t position,
                                         nvinfer1::DynamicPluginTensorDesc const* tensors,
                                         std::int32_t inputs, std::int32_t outputs) noexcept {
  return adapted_.supports(position, tensors[position].desc, inputs, outputs);
}

std::size_t PluginV3::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in,
                                       std::int32_t inputs,
                                       nvinfer1::DynamicPluginTensorDesc const*,
                                       std::int32_t) const noexcept {
  std::vector<nvinfer1::Dims> most;
  for (std::int32_t i = 0; i < inputs; ++i) {
    most.push_back(in[i].max);
  }
  return adapted_.workspace(most);
}

std::int32_t PluginV3::onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t inputs,
                                     nvinfer1::PluginTensorDesc const*, std::int32_t) noexcept {
  return adapted_.fits(in, inputs) ? 0 : -1;
}

std::int32_t PluginV3::enqueue(nvinfer1::PluginTensorDesc const* in,
                               nvinfer1::PluginTensorDesc const* out, void const* const* inputs,
                               void* const* outputs, void* workspace,
                               cudaStream_t stream) noexcept {
  return adapted_.enqueue(in, out, inputs, outputs, workspace, stream) ? 0 : -1;
}

nvinfer1::IPluginV3* PluginV3::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  auto copy = made(adapted_.kind(), "attaching", [&] { return std::make_unique<PluginV3>(adapted_); });
  return copy != nullptr && copy->adapted_.attach() ? copy.release() : nullptr;
}

nvinfer1::IPluginV3* CreatorV3::createPlugin(char const*,
                                             nvinfer1::PluginFieldCollection const* fields,
                                             nvinfer1::TensorRTPhase phase) noexcept {
  return made(kind_, "creating", [&] {
    if (fields == nullptr) {
      throw Error("no fields");
    }
    return new PluginV3(Adapted(kind_, std::make_shared<Fields const>(*fields), phase));
  });
}

}  // namespace dycoke
