// DycokeSelect: from scores to the table and the lengths that the pruned layers read, of the shapes
// of those that came in. Prompt rows pass through, and leave their marks in the state.
#include "log.h"
#include "node.h"

namespace dycoke {

namespace {

using nvinfer1::DataType;

class Select final : public Node {
 public:
  explicit Select(std::shared_ptr<Fields const> fields)
      : Node(std::move(fields)),
        fused_(images_->constant("select", "FUSED") != 0),
        block_(images_->constant("select", "BLOCK")) {
    settings_.visual_base = fields_->int32("visual_base");
    settings_.mode = fields_->int32("mode");
    settings_.reduce_max = fields_->int32("reduce_max");
    settings_.threshold = fields_->float32("threshold");
    settings_.memory = fields_->float32("memory");
    settings_.order = fields_->int32("order");
    settings_.moved_from = fields_->int32("moved_from");
    settings_.block_bytes = fields_->int64("block_bytes");
    if (settings_.mode < 0 || settings_.mode >= kGateModes) {
      throw Error("field 'mode' is " + std::to_string(settings_.mode) + ", allowed: 0 to " +
                  std::to_string(kGateModes - 1));
    }
    if (!(settings_.memory >= 0 && settings_.memory < 1)) {
      throw Error("field 'memory' is " + std::to_string(settings_.memory) + ", allowed: 0 to below 1");
    }
    if (settings_.order != 0 && settings_.order != 1) {
      throw Error("field 'order' is " + std::to_string(settings_.order) + ", allowed: 0 and 1");
    }
    inputs_ = {{"input_ids", DataType::kINT32, 1},
               {"sequence_length", DataType::kINT32, 1},
               {"context_lengths", DataType::kINT32, 1},
               {"kv_cache_block_offsets", DataType::kINT32, 4},
               {"keep_table", DataType::kINT32, 1},
               {"host_request_types", DataType::kINT32, 1, true},
               {"host_kv_cache_pool_pointers", DataType::kINT64, 2, true},
               {"host_kv_cache_pool_mapping", DataType::kINT32, 2, true}};
    if (fused_) {
      inputs_.push_back({"logits", DataType::kFLOAT, 3});
      inputs_.push_back({"maxima", DataType::kFLOAT, 3});
      inputs_.push_back({"sums", DataType::kFLOAT, 3});
    } else {
      inputs_.push_back({"scores", DataType::kFLOAT, 2});
    }
    if (settings_.order != 0) {  // not read: K and V move when it is there
      inputs_.push_back({"after", model_type(), 0});
    }
    outputs_ = {{"kv_cache_block_offsets", DataType::kINT32, 4},
                {"sequence_length", DataType::kINT32, 1}};
  }

  void shapes(nvinfer1::DimsExprs const* in, nvinfer1::DimsExprs* out,
              nvinfer1::IExprBuilder&) const override {
    out[0] = in[kTable];
    out[1] = in[kLengths];
  }

  std::size_t workspace(std::vector<nvinfer1::Dims> const& in) const override {
    Workspace parts;
    take(parts, in[kTable].d[1], in[kTable].d[3]);
    return parts.bytes();
  }

  void attach() override { step_ = std::make_unique<SelectStep>(images_, settings_); }

  void run(Call const& call) override {
    Batch batch;
    batch.rows = call.size(kTable)[1];
    batch.tokens = call.size(0)[0];
    batch.max_blocks = call.size(kTable)[3];
    batch.lengths = call.input<std::int32_t>(kLengths);
    batch.context_lengths = call.input<std::int32_t>(2);
    batch.table = call.input<std::int32_t>(kTable);
    if (call.size(kTable)[0] != 1) {
      throw Error("kv_cache_block_offsets has " + std::to_string(call.size(kTable)[0]) +
                  " pools, supported: 1");
    }
    if (call.size(kKeepTable)[0] <= batch.max_blocks) {
      throw Error("keep_table has " + std::to_string(call.size(kKeepTable)[0]) +
                  " entries for tables of " + std::to_string(batch.max_blocks) + " blocks");
    }
    HostInputs host;
    host.request_types = call.input<std::int32_t>(5);
    host.pool_pointers = call.input<std::int64_t>(6);
    host.pool_mapping = call.input<std::int32_t>(7);
    host.mapped_layers = call.size(7)[0];

    Workspace memory(call.workspace);
    Parts const parts = take(memory, batch.rows, batch.max_blocks);
    // Without logits the kernel has these parameters still, and does not read them.
    void const* maxima = fused_ ? call.inputs[kScores + 1] : call.inputs[kScores];
    void const* sums = fused_ ? call.inputs[kScores + 2] : call.inputs[kScores];
    auto const splits = fused_ ? static_cast<std::int32_t>(call.size(kScores + 1)[2]) : 1;
    step_->run(batch, host,
               {call.inputs[kScores], maxima, sums, call.inputs[0], call.inputs[kKeepTable],
                parts.block_scores, parts.decisions, parts.similarities, parts.swaps,
                parts.moved, call.outputs[0], call.outputs[1], splits},
               call.stream);
  }

 private:
  static constexpr int kLengths = 1, kTable = 3, kKeepTable = 4, kScores = 8;

  struct Parts {
    void *block_scores, *decisions, *similarities, *swaps, *moved;
  };
  Parts take(Workspace& memory, std::int64_t rows, std::int64_t max_blocks) const {
    Parts parts{};
    parts.block_scores = memory.take(rows * max_blocks * 4);
    parts.decisions = memory.take(rows * 4);
    parts.similarities = memory.take(rows * 4);
    parts.moved = memory.take(rows * 4);
    // Without an order none is written.
    bool const orders = settings_.order != 0;
    parts.swaps = orders ? memory.take(rows * 2 * max_blocks * block_ * 4) : parts.moved;
    return parts;
  }

  bool fused_;  // reads logits; else scores that are summed over ranks
  std::int32_t block_;
  SelectSettings settings_;
  std::unique_ptr<SelectStep> step_;
};

}  // namespace

NodeKind const& select_kind() {
  using Type = nvinfer1::PluginFieldType;
  static NodeKind const kind{
      "DycokeSelect",
      {{"images", nullptr, Type::kUNKNOWN, 1},
       {"visual_base", nullptr, Type::kINT32, 1},
       {"mode", nullptr, Type::kINT32, 1},
       {"reduce_max", nullptr, Type::kINT32, 1},
       {"threshold", nullptr, Type::kFLOAT32, 1},
       {"memory", nullptr, Type::kFLOAT32, 1},
       {"order", nullptr, Type::kINT32, 1},
       {"moved_from", nullptr, Type::kINT32, 1},
       {"block_bytes", nullptr, Type::kINT64, 1}},
      [](std::shared_ptr<Fields const> fields) -> std::unique_ptr<Node> {
        return std::make_unique<Select>(std::move(fields));
      }};
  return kind;
}

}  // namespace dycoke
