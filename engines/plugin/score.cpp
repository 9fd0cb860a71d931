// DycokeScore: logits of the fed tokens in the scoring layer. With kernel images for several ranks
// its one output is this rank's share of the scores, for an all-reduce; logits are workspace then.
#include "log.h"
#include "node.h"

namespace dycoke {

namespace {

using nvinfer1::DataType;

class Score final : public Node {
 public:
  explicit Score(std::shared_ptr<Fields const> fields)
      : Node(std::move(fields)),
        shared_(images_->has("scores")),
        heads_(images_->constant("logits", "HEADS")),
        block_(images_->constant("logits", "BLOCK")),
        splits_(fields_->int32("splits")) {
    if (splits_ < 1 || splits_ > 32) {
      throw Error("field 'splits' is " + std::to_string(splits_) + ", allowed: 1 to 32");
    }
    inputs_ = {{"qkv", model_type(), 2},
               {"cos_sin", DataType::kFLOAT, 0},
               {"sequence_length", DataType::kINT32, 1},
               {"kv_cache_block_offsets", DataType::kINT32, 4},
               {"host_request_types", DataType::kINT32, 1, true},
               {"host_kv_cache_pool_pointers", DataType::kINT64, 2, true},
               {"host_kv_cache_pool_mapping", DataType::kINT32, 2, true}};
    if (shared_) {
      outputs_ = {{"scores", DataType::kFLOAT, 2}};
    } else {
      outputs_ = {{"logits", DataType::kFLOAT, 3},
                  {"maxima", DataType::kFLOAT, 3},
                  {"sums", DataType::kFLOAT, 3}};
    }
  }

  void shapes(nvinfer1::DimsExprs const* in, nvinfer1::DimsExprs* out,
              nvinfer1::IExprBuilder& builder) const override {
    auto const* rows = in[kTable].d[1];
    auto const* tokens = builder.operation(nvinfer1::DimensionOperation::kPROD, *in[kTable].d[3],
                                           *builder.constant(block_));
    if (shared_) {
      out[0].nbDims = 2;
      out[0].d[0] = rows;
      out[0].d[1] = tokens;
      return;
    }
    for (int i = 0; i < 3; ++i) {
      out[i].nbDims = 3;
      out[i].d[0] = rows;
      out[i].d[1] = builder.constant(heads_);
      out[i].d[2] = i == 0 ? tokens : builder.constant(splits_);
    }
  }

  std::size_t workspace(std::vector<nvinfer1::Dims> const& in) const override {
    Workspace parts;
    if (shared_) {
      take(parts, in[kTable].d[1], in[kTable].d[3]);
    }
    return parts.bytes();
  }

  void attach() override {
    step_ = std::make_unique<ScoreStep>(images_, fields_->int32("layer"), splits_,
                                        fields_->int32("ranks"));
  }

  void run(Call const& call) override {
    if (call.size(kTable)[0] != 1) {
      throw Error("kv_cache_block_offsets has " + std::to_string(call.size(kTable)[0]) +
                  " pools, supported: 1");
    }
    Batch batch;
    batch.rows = call.size(kTable)[1];
    batch.tokens = call.size(0)[0];
    batch.max_blocks = call.size(kTable)[3];
    batch.lengths = call.input<std::int32_t>(2);
    batch.table = call.input<std::int32_t>(kTable);
    HostInputs host;
    host.request_types = call.input<std::int32_t>(4);
    host.pool_pointers = call.input<std::int64_t>(5);
    host.pool_mapping = call.input<std::int32_t>(6);
    host.mapped_layers = call.size(6)[0];

    Parts parts{};
    if (shared_) {
      Workspace memory(call.workspace);
      parts = take(memory, batch.rows, batch.max_blocks);
    } else {
      parts = {call.outputs[0], call.outputs[1], call.outputs[2]};
    }
    step_->run(batch, host,
               {call.inputs[0], call.inputs[1], parts.logits, parts.maxima, parts.sums,
                shared_ ? call.outputs[0] : nullptr},
               call.stream);
  }

 private:
  static constexpr int kTable = 3;

  struct Parts {
    void *logits, *maxima, *sums;
  };
  Parts take(Workspace& memory, std::int64_t rows, std::int64_t max_blocks) const {
    std::int64_t const lines = rows * heads_ * static_cast<std::int64_t>(sizeof(float));
    Parts parts{};
    parts.logits = memory.take(lines * max_blocks * block_);
    parts.maxima = memory.take(lines * splits_);
    parts.sums = memory.take(lines * splits_);
    return parts;
  }

  bool shared_;  // with other ranks
  std::int32_t heads_, block_, splits_;
  std::unique_ptr<ScoreStep> step_;
};

}  // namespace

NodeKind const& score_kind() {
  using Type = nvinfer1::PluginFieldType;
  static NodeKind const kind{
      "DycokeScore",
      {{"images", nullptr, Type::kUNKNOWN, 1},
       {"layer", nullptr, Type::kINT32, 1},
       {"splits", nullptr, Type::kINT32, 1},
       {"ranks", nullptr, Type::kINT32, 1}},
      [](std::shared_ptr<Fields const> fields) -> std::unique_ptr<Node> {
        return std::make_unique<Score>(std::move(fields));
      }};
  return kind;
}

}  // namespace dycoke
