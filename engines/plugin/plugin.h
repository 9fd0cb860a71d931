// TensorRT's side of a plugin, the same for all three: life cycle, types, fields, errors.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "fields.h"
#include "node.h"

namespace dycoke {

inline constexpr char const* kVersion = "1";
inline constexpr char const* kNamespace = "dycoke";

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // Throws Error for fields that cannot be used.
  Plugin(NodeKind const& kind, std::shared_ptr<Fields const> fields,
         nvinfer1::TensorRTPhase phase);

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  char const* getPluginName() const noexcept override { return kind_.name; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

  std::int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t inputs,
                               nvinfer1::DynamicPluginTensorDesc const* out,
                               std::int32_t outputs) noexcept override;
  std::int32_t getOutputDataTypes(nvinfer1::DataType* types, std::int32_t outputs,
                                  nvinfer1::DataType const* input_types,
                                  std::int32_t inputs) const noexcept override;
  std::int32_t getOutputShapes(nvinfer1::DimsExprs const* in, std::int32_t inputs,
                               nvinfer1::DimsExprs const* shape_in, std::int32_t shape_inputs,
                               nvinfer1::DimsExprs* out, std::int32_t outputs,
                               nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(std::int32_t position,
                                 nvinfer1::DynamicPluginTensorDesc const* tensors,
                                 std::int32_t inputs, std::int32_t outputs) noexcept override;
  std::int32_t getNbOutputs() const noexcept override;
  std::size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t inputs,
                               nvinfer1::DynamicPluginTensorDesc const* out,
                               std::int32_t outputs) const noexcept override;

  std::int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t inputs,
                             nvinfer1::PluginTensorDesc const* out,
                             std::int32_t outputs) noexcept override;
  std::int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
                       void const* const* inputs, void* const* outputs, void* workspace,
                       cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(
      nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override {
    return fields_->collection();
  }

 private:
  // Runs a part of the life cycle; an Error becomes a log message and `false`.
  template <class Part>
  bool guarded(char const* what, Part&& part) const noexcept;
  void zero(nvinfer1::PluginTensorDesc const* out, void* const* outputs, cudaStream_t stream) const;

  NodeKind const& kind_;
  std::shared_ptr<Fields const> fields_;
  nvinfer1::TensorRTPhase phase_;
  std::unique_ptr<Node> node_;
  bool attached_ = false;
};

// One per plugin; lives as long as the process, since registries keep pointers to it.
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(NodeKind const& kind);

  nvinfer1::IPluginV3* createPlugin(char const* name,
                                    nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }
  char const* getPluginName() const noexcept override { return kind_.name; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  NodeKind const& kind_;
  nvinfer1::PluginFieldCollection names_{};
};

}  // namespace dycoke
