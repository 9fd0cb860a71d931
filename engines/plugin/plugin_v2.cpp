#include "plugin_v2.h"

#include <cstring>

#include "log.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace dycoke {

using nvinfer1::TensorRTPhase;

nvinfer1::IPluginV2DynamicExt* PluginV2::clone() const noexcept {
  return made(adapted_.kind(), "cloning", [&] { return new PluginV2(adapted_, namespace_); });
}

nvinfer1::DataType PluginV2::getOutputDataType(std::int32_t index, nvinfer1::DataType const*,
                                               std::int32_t inputs) const noexcept {
  std::vector<nvinfer1::DataType> types(static_cast<std::size_t>(adapted_.outputs()));
  adapted_.types(types.data(), adapted_.outputs(), inputs);
  return types[static_cast<std::size_t>(index)];
}

nvinfer1::DimsExprs PluginV2::getOutputDimensions(std::int32_t index, nvinfer1::DimsExprs const* in,
                                                  std::int32_t inputs,
                                                  nvinfer1::IExprBuilder& builder) noexcept {
  std::vector<nvinfer1::DimsExprs> shapes(static_cast<std::size_t>(adapted_.outputs()));
  if (!adapted_.shapes(in, inputs, shapes.data(), adapted_.outputs(), builder)) {
    nvinfer1::DimsExprs none{};
    none.nbDims = -1;
    return none;
  }
  return shapes[static_cast<std::size_t>(index)];
}

bool PluginV2::supportsFormatCombination(std::int32_t position,
                                         nvinfer1::PluginTensorDesc const* tensors,
                                         std::int32_t inputs, std::int32_t outputs) noexcept {
  return adapted_.supports(position, tensors[position], inputs, outputs);
}

// It cannot refuse: what it would say was said when types and shapes were asked for.
void PluginV2::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t inputs,
                               nvinfer1::DynamicPluginTensorDesc const*,
                               std::int32_t outputs) noexcept {
  adapted_.configure(in, inputs, outputs);
}

// Called with the largest shapes.
std::size_t PluginV2::getWorkspaceSize(nvinfer1::PluginTensorDesc const* in, std::int32_t inputs,
                                       nvinfer1::PluginTensorDesc const*,
                                       std::int32_t) const noexcept {
  std::vector<nvinfer1::Dims> most;
  for (std::int32_t i = 0; i < inputs; ++i) {
    most.push_back(in[i].dims);
  }
  return adapted_.workspace(most);
}

// Called for each clone when its context is made, or when that gets memory. It cannot refuse: the
// step does, which tries again.
void PluginV2::attachToContext(cudnnContext*, cublasContext*, nvinfer1::IGpuAllocator*) noexcept {
  adapted_.attach();
}

std::int32_t PluginV2::enqueue(nvinfer1::PluginTensorDesc const* in,
                               nvinfer1::PluginTensorDesc const* out, void const* const* inputs,
                               void* const* outputs, void* workspace,
                               cudaStream_t stream) noexcept {
  bool const done = adapted_.fits(in, adapted_.inputs()) &&
                    adapted_.attach() &&
                    adapted_.enqueue(in, out, inputs, outputs, workspace, stream);
  return done ? 0 : -1;
}

std::size_t PluginV2::getSerializationSize() const noexcept { return adapted_.fields().size(); }

void PluginV2::serialize(void* buffer) const noexcept {
  adapted_.fields().write(static_cast<char*>(buffer));
}

nvinfer1::IPluginV2* CreatorV2::createPlugin(char const*,
                                             nvinfer1::PluginFieldCollection const* fields) noexcept {
  return made(kind_, "creating", [&] {
    if (fields == nullptr) {
      throw Error("no fields");
    }
    return new PluginV2(
        Adapted(kind_, std::make_shared<Fields const>(*fields), TensorRTPhase::kBUILD), namespace_);
  });
}

nvinfer1::IPluginV2* CreatorV2::deserializePlugin(char const*, void const* bytes,
                                                  std::size_t count) noexcept {
  return made(kind_, "reading an engine", [&] {
    auto fields = Fields::read({static_cast<char const*>(bytes), count});
    return new PluginV2(Adapted(kind_, std::move(fields), TensorRTPhase::kRUNTIME), namespace_);
  });
}

}  // namespace dycoke
