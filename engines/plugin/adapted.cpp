#include "adapted.h"

#include "driver.h"
#include "log.h"

namespace dycoke {

namespace {

using nvinfer1::DataType;
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

template <class Tensor, class Rank>
std::vector<std::int32_t> ranks_of(Tensor const* tensors, std::int32_t count, Rank&& rank) {
  std::vector<std::int32_t> found;
  for (std::int32_t i = 0; i < count; ++i) {
    found.push_back(rank(tensors[i]));
  }
  return found;
}

}  // namespace

void report(NodeKind const& kind, char const* what, std::exception const& error) noexcept {
  try {
    log(Severity::kError, std::string(kind.name) + ": " + what + ": " + error.what());
  } catch (...) {  // no memory for the message
  }
}

template <class Part>
bool Adapted::guarded(char const* what, Part&& part) const noexcept {
  try {
    part();
    return true;
  } catch (std::exception const& error) {
    report(kind_, what, error);
    return false;
  }
}

Adapted::Adapted(NodeKind const& kind, std::shared_ptr<Fields const> fields, TensorRTPhase phase)
    : kind_(kind), fields_(std::move(fields)), phase_(phase), node_(kind.make(fields_)) {}

Adapted::Adapted(Adapted const& other) : Adapted(other.kind_, other.fields_, other.phase_) {}

void Adapted::check_ranks(std::vector<std::int32_t> const& ranks) const {
  check_count(static_cast<std::int32_t>(ranks.size()), node_->inputs().size(), "inputs");
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    TensorKind const& kind = node_->inputs()[i];
    if (kind.rank != 0 && ranks[i] != kind.rank) {
      throw Error(std::string(kind.name) + " has " + std::to_string(ranks[i]) +
                  " dimensions, expected " + std::to_string(kind.rank));
    }
  }
}

bool Adapted::configure(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t inputs,
                        std::int32_t outputs) const noexcept {
  return guarded("configuring", [&] {
    check_count(outputs, node_->outputs().size(), "outputs");
    check_ranks(ranks_of(in, inputs, [](auto const& tensor) { return tensor.desc.dims.nbDims; }));
  });
}

bool Adapted::types(DataType* types, std::int32_t outputs, std::int32_t inputs) const noexcept {
  return guarded("types", [&] {
    check_count(inputs, node_->inputs().size(), "inputs");
    check_count(outputs, node_->outputs().size(), "outputs");
    for (std::size_t i = 0; i < node_->outputs().size(); ++i) {
      types[i] = node_->outputs()[i].type;
    }
  });
}

bool Adapted::shapes(nvinfer1::DimsExprs const* in, std::int32_t inputs, nvinfer1::DimsExprs* out,
                     std::int32_t outputs, nvinfer1::IExprBuilder& builder) const noexcept {
  return guarded("shapes", [&] {
    check_count(outputs, node_->outputs().size(), "outputs");
    check_ranks(ranks_of(in, inputs, [](auto const& tensor) { return tensor.nbDims; }));
    node_->shapes(in, out, builder);
  });
}

// Exactly one type and format each. A second one would let TensorRT convert an input, which for a
// host tensor means a copy to the device.
bool Adapted::supports(std::int32_t position, nvinfer1::PluginTensorDesc const& tensor,
                       std::int32_t inputs, std::int32_t outputs) const noexcept {
  auto const& in = node_->inputs();
  auto const& out = node_->outputs();
  if (inputs < 0 || static_cast<std::size_t>(inputs) != in.size() ||
      static_cast<std::size_t>(outputs) != out.size()) {
    return false;
  }
  auto const place = static_cast<std::size_t>(position);
  TensorKind const& kind = place < in.size() ? in[place] : out[place - in.size()];
  return tensor.format == nvinfer1::TensorFormat::kLINEAR && tensor.type == kind.type;
}

std::size_t Adapted::workspace(std::vector<nvinfer1::Dims> const& most) const noexcept {
  std::size_t bytes = 0;
  guarded("workspace", [&] { bytes = node_->workspace(most); });
  return bytes;
}

bool Adapted::fits(nvinfer1::PluginTensorDesc const* in, std::int32_t inputs) const noexcept {
  return guarded("shape change", [&] {
    check_ranks(ranks_of(in, inputs, [](auto const& tensor) { return tensor.dims.nbDims; }));
  });
}

bool Adapted::attach() noexcept {
  return guarded("attaching", [&] {
    if (phase_ == TensorRTPhase::kRUNTIME && !attached_) {
      node_->attach();
      attached_ = true;
    }
  });
}

// While an engine is built, TensorRT times plugins on device memory with anything in it, the host
// tensors too: nothing of it is read.
void Adapted::zero(nvinfer1::PluginTensorDesc const* out, void* const* outputs,
                   cudaStream_t stream) const {
  for (std::size_t i = 0; i < node_->outputs().size(); ++i) {
    check(driver().cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(outputs[i]), 0,
                                   static_cast<std::size_t>(bytes_of(out[i])), stream),
          "clearing an output");
  }
}

bool Adapted::enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
                      void const* const* inputs, void* const* outputs, void* workspace,
                      cudaStream_t stream) const noexcept {
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
  });
}

}  // namespace dycoke
