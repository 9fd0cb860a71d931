#include "steps.h"

#include <cmath>

#include "driver.h"
#include "log.h"

namespace dycoke {

namespace {

constexpr std::int32_t kContext = 0, kGeneration = 1;

// K and V move in all layers from one on: those must be the pool's last ones.
void check_layers_in_order(HostInputs const& host) {
  for (std::int64_t layer = 0; layer < host.mapped_layers; ++layer) {
    if (host.pool_mapping[2 * layer + 1] != layer) {
      throw Error("host_kv_cache_pool_mapping: layer " + std::to_string(layer) + " is number " +
                  std::to_string(host.pool_mapping[2 * layer + 1]) +
                  " of the pool; an order of importance needs layers in their order");
    }
  }
}

}  // namespace

void check_host(void const* pointer, char const* name) {
  unsigned type = 0;
  CUresult const status = driver().cuPointerGetAttribute(
      &type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, reinterpret_cast<CUdeviceptr>(pointer));
  // Memory that the driver never saw is the usual case, and an "invalid value" to it.
  if (status == CUDA_SUCCESS && type == CU_MEMORYTYPE_DEVICE) {
    throw Error(std::string(name) + " is in device memory; TensorRT-LLM keeps it on the host");
  }
}

std::int32_t count_context_rows(std::int32_t const* request_types, std::int64_t rows) {
  std::int32_t count = 0;
  while (count < rows && request_types[count] == kContext) {
    ++count;
  }
  for (std::int64_t row = count; row < rows; ++row) {
    if (request_types[row] != kGeneration) {
      throw Error("host_request_types: row " + std::to_string(row) + " is of type " +
                  std::to_string(request_types[row]) + "; prompts come first, then decoding rows");
    }
  }
  return count;
}

PoolLayer find_layer(HostInputs const& host, std::int32_t layer) {
  if (layer < 0 || layer >= host.mapped_layers) {
    throw Error("layer " + std::to_string(layer) + " is not among the " +
                std::to_string(host.mapped_layers) + " of host_kv_cache_pool_mapping");
  }
  PoolLayer found;
  for (std::int64_t i = 0; i < host.mapped_layers; ++i) {
    if (host.pool_mapping[2 * i] != 0) {
      throw Error("the KV cache has more than one pool; layers of several widths or windows are "
                  "not supported");
    }
    ++found.layers;
  }
  found.layer = host.pool_mapping[2 * layer + 1];
  found.base = reinterpret_cast<void*>(host.pool_pointers[0]);
  if (found.base == nullptr || found.layer < 0 || found.layer >= found.layers) {
    throw Error("host_kv_cache_pool_pointers or _mapping is not filled in");
  }
  return found;
}

ScoreStep::ScoreStep(std::shared_ptr<Images const> images, std::int32_t layer, std::int32_t splits,
                     std::int32_t ranks)
    : logits_(images, "logits"),
      scores_(images->has("scores") ? std::make_unique<Kernel>(images, "scores") : nullptr),
      layer_(layer),
      splits_(splits),
      block_(images->constant("logits", "BLOCK")),
      scale_(1.0F / std::sqrt(static_cast<float>(images->constant("logits", "HEAD_DIM")))),
      total_heads_(static_cast<float>(images->constant("logits", "HEADS") * ranks)) {}

void ScoreStep::run(Batch const& batch, HostInputs const& host, Tensors const& tensors,
                    CUstream stream) const {
  std::int32_t const contexts = count_context_rows(host.request_types, batch.rows);
  auto const max_blocks = static_cast<std::int32_t>(batch.max_blocks);
  if (contexts < batch.rows) {
    PoolLayer const pool = find_layer(host, layer_);
    logits_.launch({{"rows", batch.rows}, {"splits", splits_}},
                   {{"qkv", tensors.qkv},
                    {"cos_sin", tensors.cos_sin},
                    {"pool", pool.base},
                    {"table", batch.table},
                    {"lengths", batch.lengths},
                    {"logits", tensors.logits},
                    {"maxima", tensors.maxima},
                    {"sums", tensors.sums},
                    {"token_offset", static_cast<std::int32_t>(batch.tokens - batch.rows)},
                    {"context_rows", contexts},
                    {"layer", pool.layer},
                    {"max_blocks", max_blocks},
                    {"splits", splits_},
                    {"scale", scale_}},
                   stream);
  }
  if (scores_ != nullptr) {  // prompt rows too: the sum over ranks adds what is there
    std::int32_t const tokens = max_blocks * block_;
    scores_->launch({{"rows", batch.rows}, {"row_tokens", tokens}},
                    {{"logits", tensors.logits},
                     {"maxima", tensors.maxima},
                     {"sums", tensors.sums},
                     {"lengths", batch.lengths},
                     {"scores", tensors.scores},
                     {"context_rows", contexts},
                     {"tokens", tokens},
                     {"splits", splits_},
                     {"total_heads", total_heads_}},
                    stream);
  }
}

SelectStep::SelectStep(std::shared_ptr<Images const> images, SelectSettings const& settings)
    : context_(images, "context"),
      select_(images, "select"),
      reorder_(settings.order != 0 ? std::make_unique<Kernel>(images, "reorder") : nullptr),
      settings_(settings),
      reserve_(std::make_shared<DeviceState>(DeviceState::capacity_of_device(settings.block_bytes),
                                             images->constant("select", "BLOCK"),
                                             settings.memory > 0)) {}

void SelectStep::run(Batch const& batch, HostInputs const& host, Tensors const& tensors,
                     CUstream stream) {
  std::int32_t const contexts = count_context_rows(host.request_types, batch.rows);
  PoolLayer const pool = find_layer(host, settings_.moved_from);
  if (reorder_ != nullptr) {
    check_layers_in_order(host);
  }
  if (pool.base != pool_) {
    state_ = state_of_pool(pool.base, reserve_);
    pool_ = pool.base;
  }
  DeviceState const& state = *state_;
  auto const max_blocks = static_cast<std::int32_t>(batch.max_blocks);
  context_.launch({{"context_rows", contexts}},
                  {{"ids", tensors.ids},
                   {"table", batch.table},
                   {"lengths", batch.lengths},
                   {"context_lengths", batch.context_lengths},
                   {"state_visual", state.visual()},
                   {"state_record", state.record()},
                   {"layers", pool.layers},
                   {"capacity", state.capacity()},
                   {"max_blocks", max_blocks},
                   {"visual_base", settings_.visual_base}},
                  stream);
  // Prompt rows are copied, so this runs in every step. padding: engines read whole tables.
  select_.launch({{"rows", batch.rows}},
                 {{"scores", tensors.scores},
                  {"maxima", tensors.maxima},
                  {"sums", tensors.sums},
                  {"table", batch.table},
                  {"lengths", batch.lengths},
                  {"prompt_lengths", batch.context_lengths},
                  {"keep_table", tensors.keep_table},
                  {"state_scores", state.scores()},
                  {"state_average", state.average()},
                  {"state_visual", state.visual()},
                  {"state_keep", state.keep()},
                  {"state_record", state.record()},
                  {"block_scores", tensors.block_scores},
                  {"swaps", tensors.swaps},
                  {"moved", tensors.moved},
                  {"out_table", tensors.table},
                  {"out_lengths", tensors.lengths},
                  {"decisions", tensors.decisions},
                  {"similarities", tensors.similarities},
                  {"counters", state.counters()},
                  {"context_rows", contexts},
                  {"layers", pool.layers},
                  {"capacity", state.capacity()},
                  {"max_blocks", max_blocks},
                  {"padding", 1},
                  {"splits", tensors.splits},
                  {"mode", settings_.mode},
                  {"reduce_max", settings_.reduce_max},
                  {"importance", settings_.order},
                  {"threshold", settings_.threshold},
                  {"memory", settings_.memory}},
                 stream);
  if (reorder_ != nullptr && contexts < batch.rows) {
    reorder_->launch({},
                     {{"pool", pool.base},
                      {"table", batch.table},
                      {"swaps", tensors.swaps},
                      {"moved", tensors.moved},
                      {"rows", static_cast<std::int32_t>(batch.rows)},
                      {"layer", pool.layer},
                      {"layers", pool.layers},
                      {"max_blocks", max_blocks}},
                     stream);
  }
  state.publish(stream);
}

RopeStep::RopeStep(std::shared_ptr<Images const> images) : rotary_(images, "rotary") {}

void RopeStep::run(Batch const& batch, std::int32_t const* request_types, void const* qkv,
                   void const* cos_sin, void* out, CUstream stream) const {
  // Nothing is written to the KV pool here, so its table and address are any valid pointer.
  rotary_.launch({{"tokens", batch.tokens}},
                 {{"qkv", qkv},
                  {"out", out},
                  {"cos_sin", cos_sin},
                  {"lengths", batch.lengths},
                  {"context_lengths", batch.context_lengths},
                  {"table", batch.lengths},
                  {"pool", out},
                  {"context_rows", count_context_rows(request_types, batch.rows)},
                  {"layer", 0},
                  {"max_blocks", 0}},
                 stream);
}

}  // namespace dycoke
