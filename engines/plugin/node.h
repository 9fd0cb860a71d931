// What one of the three plugins is, apart from TensorRT's life cycle (adapted.h): its tensors, their
// shapes, and its step.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "fields.h"
#include "images.h"
#include "steps.h"

namespace dycoke {

// A tensor's sizes, as the adaptors read them.
class Sizes {
 public:
  explicit Sizes(nvinfer1::Dims const& dims) : dims_(dims) {}
  std::int64_t operator[](int axis) const { return dims_.d[axis]; }
  std::int64_t volume() const;

 private:
  nvinfer1::Dims const& dims_;
};

// What TensorRT hands to enqueue.
struct Call {
  nvinfer1::PluginTensorDesc const* in;
  nvinfer1::PluginTensorDesc const* out;
  void const* const* inputs;
  void* const* outputs;
  void* workspace;
  cudaStream_t stream;

  template <class Value>
  Value const* input(int index) const {
    return static_cast<Value const*>(inputs[index]);
  }
  Sizes size(int index) const { return Sizes(in[index].dims); }
};

struct TensorKind {
  char const* name;
  nvinfer1::DataType type;
  int rank;           // number of dimensions; 0: any
  bool host = false;  // TensorRT-LLM keeps it in host memory
};

class Node {
 public:
  explicit Node(std::shared_ptr<Fields const> fields);
  virtual ~Node() = default;

  std::vector<TensorKind> const& inputs() const { return inputs_; }
  std::vector<TensorKind> const& outputs() const { return outputs_; }

  // Fills one DimsExprs per output.
  virtual void shapes(nvinfer1::DimsExprs const* in, nvinfer1::DimsExprs* out,
                      nvinfer1::IExprBuilder& builder) const = 0;
  virtual std::size_t workspace(std::vector<nvinfer1::Dims> const&) const { return 0; }
  // Loads kernels and allocates state, in the context that the engine will run in.
  virtual void attach() = 0;
  // Launches, and nothing else: a CUDA graph may be recorded.
  virtual void run(Call const& call) = 0;

 protected:
  nvinfer1::DataType model_type() const;

  std::shared_ptr<Fields const> fields_;
  std::shared_ptr<Images const> images_;
  std::vector<TensorKind> inputs_, outputs_;
};

// Divides a workspace into parts that each begin at a multiple of 256 bytes. Without memory it only
// adds up what they need.
class Workspace {
 public:
  explicit Workspace(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}
  void* take(std::int64_t bytes);
  std::size_t bytes() const { return used_; }

 private:
  char* memory_;
  std::size_t used_ = 0;
};

// The names that engines know them by.
struct NodeKind {
  char const* name;
  std::vector<nvinfer1::PluginField> fields;
  std::unique_ptr<Node> (*make)(std::shared_ptr<Fields const> fields);

  nvinfer1::PluginFieldCollection field_names() const {
    return {static_cast<std::int32_t>(fields.size()), fields.data()};
  }
};
NodeKind const& score_kind();
NodeKind const& select_kind();
NodeKind const& rope_kind();

}  // namespace dycoke
