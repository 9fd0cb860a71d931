// DycokeRope: q and k of a pruned layer, rotated to their true positions. That layer's attention is
// built without rotation, since it would take positions from the shortened lengths.
#include "node.h"

namespace dycoke {

namespace {

using nvinfer1::DataType;

class Rope final : public Node {
 public:
  explicit Rope(std::shared_ptr<Fields const> fields) : Node(std::move(fields)) {
    inputs_ = {{"qkv", model_type(), 2},
               {"cos_sin", DataType::kFLOAT, 0},
               {"sequence_length", DataType::kINT32, 1},
               {"context_lengths", DataType::kINT32, 1},
               {"host_request_types", DataType::kINT32, 1, true}};
    outputs_ = {{"qkv", model_type(), 2}};
  }

  void shapes(nvinfer1::DimsExprs const* in, nvinfer1::DimsExprs* out,
              nvinfer1::IExprBuilder&) const override {
    out[0] = in[0];
  }

  void attach() override { step_ = std::make_unique<RopeStep>(images_); }

  void run(Call const& call) override {
    Batch batch;
    batch.rows = call.size(2)[0];
    batch.tokens = call.size(0)[0];
    batch.lengths = call.input<std::int32_t>(2);
    batch.context_lengths = call.input<std::int32_t>(3);
    step_->run(batch, call.input<std::int32_t>(4), call.inputs[0], call.inputs[1],
               call.outputs[0], call.stream);
  }

 private:
  std::unique_ptr<RopeStep> step_;
};

}  // namespace

NodeKind const& rope_kind() {
  static NodeKind const kind{
      "DycokeRope",
      {{"images", nullptr, nvinfer1::PluginFieldType::kUNKNOWN, 1}},
      [](std::shared_ptr<Fields const> fields) -> std::unique_ptr<Node> {
        return std::make_unique<Rope>(std::move(fields));
      }};
  return kind;
}

}  // namespace dycoke
