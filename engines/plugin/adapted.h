// What both of TensorRT's plugin interfaces ask of a plugin, answered once: plugin_v3.h and
// plugin_v2.h only put these answers into the forms of their interface.
//
// Nothing here throws: an Error becomes a log message and `false`.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "fields.h"
#include "node.h"

namespace dycoke {

inline constexpr char const* kNamespace = "dycoke";

class Adapted {
 public:
  // Throws Error for fields that cannot be used. phase: while an engine is built, nothing runs.
  Adapted(NodeKind const& kind, std::shared_ptr<Fields const> fields,
          nvinfer1::TensorRTPhase phase);
  // The same plugin, not attached to anything.
  Adapted(Adapted const& other);
  Adapted& operator=(Adapted const&) = delete;

  NodeKind const& kind() const { return kind_; }
  Fields const& fields() const { return *fields_; }
  std::int32_t inputs() const { return static_cast<std::int32_t>(node_->inputs().size()); }
  std::int32_t outputs() const { return static_cast<std::int32_t>(node_->outputs().size()); }

  bool configure(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t inputs,
                 std::int32_t outputs) const noexcept;
  bool types(nvinfer1::DataType* types, std::int32_t outputs, std::int32_t inputs) const noexcept;
  bool shapes(nvinfer1::DimsExprs const* in, std::int32_t inputs, nvinfer1::DimsExprs* out,
              std::int32_t outputs, nvinfer1::IExprBuilder& builder) const noexcept;
  bool supports(std::int32_t position, nvinfer1::PluginTensorDesc const& tensor,
                std::int32_t inputs, std::int32_t outputs) const noexcept;
  std::size_t workspace(std::vector<nvinfer1::Dims> const& most) const noexcept;
  bool fits(nvinfer1::PluginTensorDesc const* in, std::int32_t inputs) const noexcept;
  // Loads kernels and allocates state, unless that was done, or an engine is being built.
  bool attach() noexcept;
  bool attached() const { return attached_; }
  bool enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
               void const* const* inputs, void* const* outputs, void* workspace,
               cudaStream_t stream) const noexcept;

 private:
  template <class Part>
  bool guarded(char const* what, Part&& part) const noexcept;
  void check_ranks(std::vector<std::int32_t> const& ranks) const;
  void zero(nvinfer1::PluginTensorDesc const* out, void* const* outputs, cudaStream_t stream) const;

  NodeKind const& kind_;
  std::shared_ptr<Fields const> fields_;
  nvinfer1::TensorRTPhase phase_;
  std::unique_ptr<Node> node_;
  bool attached_ = false;
};

void report(NodeKind const& kind, char const* what, std::exception const& error) noexcept;

// What `make` gives, or nullptr and a log message if it throws.
template <class Make>
auto made(NodeKind const& kind, char const* what, Make&& make) noexcept -> decltype(make()) {
  try {
    return make();
  } catch (std::exception const& error) {
    report(kind, what, error);
    return nullptr;
  }
}

}  // namespace dycoke
