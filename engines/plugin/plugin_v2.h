// A plugin as IPluginV2DynamicExt, the interface of TensorRT-LLM's own attention plugin, which gets
// host memory as inputs. Should TensorRT treat inputs of an IPluginV3 otherwise, an engine is built
// with these instead: dycoke build --plugin-interface v2.
//
// Followed: NvInferRuntime.h and NvInferRuntimePlugin.h of TensorRT v10.14. Deprecated, and there.
#pragma once

#include "adapted.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace dycoke {

// Another version of the same name: a registry keeps one creator per name, version and namespace.
inline constexpr char const* kVersionV2 = "1-v2";

class PluginV2 final : public nvinfer1::IPluginV2DynamicExt {
 public:
  PluginV2(Adapted const& adapted, std::string name_space)
      : adapted_(adapted), namespace_(std::move(name_space)) {}

  char const* getPluginType() const noexcept override { return adapted_.kind().name; }
  char const* getPluginVersion() const noexcept override { return kVersionV2; }
  void setPluginNamespace(char const* name_space) noexcept override { namespace_ = name_space; }
  char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

  nvinfer1::IPluginV2DynamicExt* clone() const noexcept override;
  void destroy() noexcept override { delete this; }
  // Clones run, and a clone counts as initialised: what a step needs comes with its context.
  std::int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}

  std::int32_t getNbOutputs() const noexcept override { return adapted_.outputs(); }
  nvinfer1::DataType getOutputDataType(std::int32_t index, nvinfer1::DataType const* types,
                                       std::int32_t inputs) const noexcept override;
  // nbDims is -1 where the network does not fit, which the log explains.
  nvinfer1::DimsExprs getOutputDimensions(std::int32_t index, nvinfer1::DimsExprs const* in,
                                          std::int32_t inputs,
                                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(std::int32_t position, nvinfer1::PluginTensorDesc const* tensors,
                                 std::int32_t inputs, std::int32_t outputs) noexcept override;
  void configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t inputs,
                       nvinfer1::DynamicPluginTensorDesc const* out,
                       std::int32_t outputs) noexcept override;
  std::size_t getWorkspaceSize(nvinfer1::PluginTensorDesc const* in, std::int32_t inputs,
                               nvinfer1::PluginTensorDesc const* out,
                               std::int32_t outputs) const noexcept override;

  void attachToContext(cudnnContext* cudnn, cublasContext* cublas,
                       nvinfer1::IGpuAllocator* allocator) noexcept override;
  std::int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
                       void const* const* inputs, void* const* outputs, void* workspace,
                       cudaStream_t stream) noexcept override;

  std::size_t getSerializationSize() const noexcept override;
  void serialize(void* buffer) const noexcept override;

 private:
  Adapted adapted_;
  std::string namespace_;
};

// As CreatorV3. A plugin made from fields is for building, one made from an engine's bytes runs.
class CreatorV2 final : public nvinfer1::IPluginCreator {
 public:
  explicit CreatorV2(NodeKind const& kind) : kind_(kind), names_(kind.field_names()) {}

  nvinfer1::IPluginV2* createPlugin(char const* name,
                                    nvinfer1::PluginFieldCollection const* fields) noexcept override;
  nvinfer1::IPluginV2* deserializePlugin(char const* name, void const* bytes,
                                         std::size_t count) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }
  char const* getPluginName() const noexcept override { return kind_.name; }
  char const* getPluginVersion() const noexcept override { return kVersionV2; }
  void setPluginNamespace(char const* name_space) noexcept override { namespace_ = name_space; }
  char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

 private:
  NodeKind const& kind_;
  nvinfer1::PluginFieldCollection names_;
  std::string namespace_ = kNamespace;
};

}  // namespace dycoke

#pragma GCC diagnostic pop
