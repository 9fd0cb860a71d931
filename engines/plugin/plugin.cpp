#include "plugin.h"

#include "driver.h"
#include "log.h"

namespace dycoke {

namespace {

using nvinfer1::DataType;
using nvinfer1::PluginCapabilityType;
using nvinfer1::TensorRTPhase;

std::int64_t bytes_of(nvinfer1::PluginTensorDesc const& tensor) {
  bool const two = tensor.type == DataType::kHALF || tensor.type == DataType::kBF16;
  return Sizes(tensor.dims).volume() * (two ? 2 : 4);
}

void check_count(std::int32_t got, std::size_t expected, char const* what) {
  if (got < 0 || static_cast<std::size_t>(got) != expected) {
    throw Error("it has " + std::to_string(expected) + " " + what + ", the network gives it " +
                std::to_string(got));
  }
}

void check_rank(TensorKind const& kind, std::int32_t rank) {
  if (kind.rank != 0 && rank != kind.rank) {
    throw Error(std::string(kind.name) + " has " + std::to_string(rank) +
                " dimensions, expected " + std::to_string(kind.rank));
  }
}

}  // namespace

template <class Part>
bool Plugin::guarded(char const* what, Part&& part) const noexcept {
  try {
    part();
    return true;
  } catch (std::exception const& error) {
    try {
      log(Severity::kError, std::string(kind_.name) + ": " + what + ": " + error.what());
    } catch (...) {  // no memory for the message
    }
    return false;
  }
}

Plugin::Plugin(NodeKind const& kind, std::shared_ptr<Fields const> fields, TensorRTPhase phase)
    : kind_(kind), fields_(std::move(fields)), phase_(phase), node_(kind.make(fields_)) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
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

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  Plugin* copy = nullptr;
  guarded("cloning", [&] { copy = new Plugin(kind_, fields_, phase_); });
  return copy;
}

std::int32_t Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in,
                                     std::int32_t inputs,
                                     nvinfer1::DynamicPluginTensorDesc const*,
                                     std::int32_t outputs) noexcept {
  return guarded("configuring", [&] {
    check_count(inputs, node_->inputs().size(), "inputs");
    check_count(outputs, node_->outputs().size(), "outputs");
    for (std::int32_t i = 0; i < inputs; ++i) {
      check_rank(node_->inputs()[static_cast<std::size_t>(i)], in[i].desc.dims.nbDims);
    }
  }) ? 0 : -1;
}

std::int32_t Plugin::getOutputDataTypes(DataType* types, std::int32_t outputs, DataType const*,
                                        std::int32_t inputs) const noexcept {
  return guarded("types", [&] {
    check_count(inputs, node_->inputs().size(), "inputs");
    check_count(outputs, node_->outputs().size(), "outputs");
    for (std::size_t i = 0; i < node_->outputs().size(); ++i) {
      types[i] = node_->outputs()[i].type;
    }
  }) ? 0 : -1;
}

std::int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* in, std::int32_t inputs,
                                     nvinfer1::DimsExprs const*, std::int32_t,
                                     nvinfer1::DimsExprs* out, std::int32_t outputs,
                                     nvinfer1::IExprBuilder& builder) noexcept {
  return guarded("shapes", [&] {
    check_count(inputs, node_->inputs().size(), "inputs");
    check_count(outputs, node_->outputs().size(), "outputs");
    for (std::int32_t i = 0; i < inputs; ++i) {
      check_rank(node_->inputs()[static_cast<std::size_t>(i)], in[i].nbDims);
    }
    node_->shapes(in, out, builder);
  }) ? 0 : -1;
}

// Exactly one type and format each. A second one would let TensorRT convert an input, which for a
// host tensor means a copy to the device.
bool Plugin::supportsFormatCombination(std::int32_t position,
                                       nvinfer1::DynamicPluginTensorDesc const* tensors,
                                       std::int32_t inputs, std::int32_t outputs) noexcept {
  auto const& in = node_->inputs();
  auto const& out = node_->outputs();
  if (inputs < 0 || static_cast<std::size_t>(inputs) != in.size() ||
      static_cast<std::size_t>(outputs) != out.size()) {
    return false;
  }
  auto const place = static_cast<std::size_t>(position);
  TensorKind const& kind = place < in.size() ? in[place] : out[place - in.size()];
  nvinfer1::PluginTensorDesc const& tensor = tensors[position].desc;
  return tensor.format == nvinfer1::TensorFormat::kLINEAR && tensor.type == kind.type;
}

std::int32_t Plugin::getNbOutputs() const noexcept {
  return static_cast<std::int32_t>(node_->outputs().size());
}

std::size_t Plugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in,
                                     std::int32_t inputs,
                                     nvinfer1::DynamicPluginTensorDesc const*,
                                     std::int32_t) const noexcept {
  std::size_t bytes = 0;
  guarded("workspace", [&] {
    std::vector<nvinfer1::Dims> most;
    for (std::int32_t i = 0; i < inputs; ++i) {
      most.push_back(in[i].max);
    }
    bytes = node_->workspace(most);
  });
  return bytes;
}

std::int32_t Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t inputs,
                                   nvinfer1::PluginTensorDesc const*, std::int32_t) noexcept {
  return guarded("shape change", [&] {
    check_count(inputs, node_->inputs().size(), "inputs");
    for (std::int32_t i = 0; i < inputs; ++i) {
      check_rank(node_->inputs()[static_cast<std::size_t>(i)], in[i].dims.nbDims);
    }
  }) ? 0 : -1;
}

// While an engine is built, TensorRT times plugins on device memory with anything in it, the host
// tensors too: nothing of it is read.
void Plugin::zero(nvinfer1::PluginTensorDesc const* out, void* const* outputs,
                  cudaStream_t stream) const {
  for (std::size_t i = 0; i < node_->outputs().size(); ++i) {
    check(driver().cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(outputs[i]), 0,
                                   static_cast<std::size_t>(bytes_of(out[i])), stream),
          "clearing an output");
  }
}

std::int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const* in,
                             nvinfer1::PluginTensorDesc const* out, void const* const* inputs,
                             void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guarded("enqueue", [&] {
    if (phase_ == TensorRTPhase::kBUILD) {
      zero(out, outputs, stream);
      return;
    }
    if (!attached_) {
      throw Error("it was not attached to an execution context");
    }
    for (std::size_t i = 0; i < node_->inputs().size(); ++i) {
      if (node_->inputs()[i].host) {
        check_host(inputs[i], node_->inputs()[i].name);
      }
    }
    node_->run({in, out, inputs, outputs, workspace, stream});
  }) ? 0 : -1;
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  std::unique_ptr<Plugin> copy;
  bool const done = guarded("attaching", [&] {
    copy = std::make_unique<Plugin>(kind_, fields_, phase_);
    if (phase_ == TensorRTPhase::kRUNTIME) {
      copy->node_->attach();
      copy->attached_ = true;
    }
  });
  return done ? copy.release() : nullptr;
}

Creator::Creator(NodeKind const& kind) : kind_(kind) {
  names_.nbFields = static_cast<std::int32_t>(kind.fields.size());
  names_.fields = kind.fields.data();
}

nvinfer1::IPluginV3* Creator::createPlugin(char const*,
                                           nvinfer1::PluginFieldCollection const* fields,
                                           TensorRTPhase phase) noexcept {
  try {
    if (fields == nullptr) {
      throw Error("no fields");
    }
    return new Plugin(kind_, std::make_shared<Fields const>(*fields), phase);
  } catch (std::exception const& error) {
    try {
      log(Severity::kError, std::string(kind_.name) + ": creating: " + error.what());
    } catch (...) {  // no memory for the message
    }
    return nullptr;
  }
}

}  // namespace dycoke
