#include "node.h"

#include "log.h"

namespace dycoke {

std::int64_t Sizes::volume() const {
  std::int64_t product = 1;
  for (std::int32_t i = 0; i < dims_.nbDims; ++i) {
    product *= dims_.d[i];
  }
  return product;
}

Node::Node(std::shared_ptr<Fields const> fields)
    : fields_(std::move(fields)), images_(Images::parse(fields_->bytes("images"))) {}

nvinfer1::DataType Node::model_type() const {
  std::string const& name = images_->dtype();
  if (name == "float32") {
    return nvinfer1::DataType::kFLOAT;
  }
  if (name == "float16") {
    return nvinfer1::DataType::kHALF;
  }
  if (name == "bfloat16") {
    return nvinfer1::DataType::kBF16;
  }
  throw Error("kernel images are of the unknown dtype '" + name + "'");
}

void* Workspace::take(std::int64_t bytes) {
  void* const part = memory_ != nullptr ? memory_ + used_ : nullptr;
  used_ += (static_cast<std::size_t>(bytes) + 255) / 256 * 256;
  return part;
}

}  // namespace dycoke
