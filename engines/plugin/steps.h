// The three parts of a pruned step, without TensorRT: pointers and sizes in, kernel launches out.
//
// Rows are sequences, prompt chunks first, then one row per decoding sequence. Tokens are packed in
// that order. Tables are TensorRT-LLM's: [row][K, V][block], entries as in core/pool.py.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>

#include "images.h"
#include "launcher.h"
#include "state.h"

namespace dycoke {

// Tensors that TensorRT-LLM keeps in host memory. TensorRT calls them device tensors all the same.
struct HostInputs {
  std::int32_t const* request_types = nullptr;  // [rows], 0 a prompt chunk, 1 decoding
  std::int64_t const* pool_pointers = nullptr;  // [pools, 2], primary and secondary
  std::int32_t const* pool_mapping = nullptr;   // [mapped_layers, 2], pool and layer in it
  std::int64_t mapped_layers = 0;
};

// Throws Error if `pointer` is device memory: a runtime that copies such tensors to the device
// cannot be served, and reading it here would end the process.
void check_host(void const* pointer, char const* name);

// Rows of prompt chunks. Throws Error if the rows are not in TensorRT-LLM's order.
std::int32_t count_context_rows(std::int32_t const* request_types, std::int64_t rows);

// Where a layer's blocks lie.
struct PoolLayer {
  void* base = nullptr;    // of the pool
  std::int32_t layer = 0;  // number within the pool
  std::int32_t layers = 0;  // of the pool
};
PoolLayer find_layer(HostInputs const& host, std::int32_t layer);

struct Batch {
  std::int64_t rows = 0;
  std::int64_t tokens = 0;
  std::int64_t max_blocks = 0;
  std::int32_t const* lengths = nullptr;          // [rows], with the fed token
  std::int32_t const* context_lengths = nullptr;  // [rows], of the chunk, or of the prompt
  std::int32_t const* table = nullptr;            // [rows, 2, max_blocks]
};

// Logits of the fed tokens in the scoring layer; on several ranks this rank's share of the scores.
class ScoreStep {
 public:
  ScoreStep(std::shared_ptr<Images const> images, std::int32_t layer, std::int32_t splits,
            std::int32_t ranks);

  struct Tensors {
    void const* qkv;      // T [tokens, heads + 2 kv heads, D], as projected
    void const* cos_sin;  // fp32 [positions, D / 2, 2]
    void* logits;         // fp32 [rows, heads, max_blocks * B]
    void* maxima;         // fp32 [rows, heads, splits]
    void* sums;           // fp32 [rows, heads, splits]
    void* scores;         // fp32 [rows, max_blocks * B], on several ranks
  };
  void run(Batch const& batch, HostInputs const& host, Tensors const& tensors,
           CUstream stream) const;

 private:
  Kernel logits_;
  std::unique_ptr<Kernel> scores_;  // on several ranks
  std::int32_t layer_, splits_;
  int block_;
  float scale_, total_heads_;
};

struct SelectSettings {
  std::int32_t visual_base = 0;  // ids from here on are visual
  std::int32_t mode = 0;         // a GateMode
  std::int32_t reduce_max = 0;   // a block's score is the maximum of its tokens', not the sum
  float threshold = 0;
  float memory = 0;              // of the averaged scores that are ranked
  std::int32_t order = 0;        // a new selection moves its tokens to where pruned steps attend
  std::int32_t moved_from = 0;   // K and V of this layer and of those above it
  std::int64_t block_bytes = 0;  // of a KV block: all layers, K and V
};

// Marks of visual tokens, gate, selection, and the table and lengths that pruned layers read; with
// an order of importance, K and V are where these say.
class SelectStep {
 public:
  SelectStep(std::shared_ptr<Images const> images, SelectSettings const& settings);

  struct Tensors {
    void const* scores;  // logits, or the sum of the ranks' scores
    void const* maxima;
    void const* sums;
    void const* ids;         // i32 [tokens]
    void const* keep_table;  // i32 [at least max_blocks + 1]
    void* block_scores;      // fp32 [rows, max_blocks]
    void* decisions;         // i32 [rows]
    void* similarities;      // fp32 [rows]
    void* swaps;             // i32 [rows, 2, max_blocks * B] of kernels/order.py, with an order
    void* moved;             // i32 [rows], pairs of each row
    void* table;             // i32 [rows, 2, max_blocks]
    void* lengths;           // i32 [rows]
    std::int32_t splits;     // third dimension of maxima and sums
  };
  void run(Batch const& batch, HostInputs const& host, Tensors const& tensors, CUstream stream);

 private:
  Kernel context_, select_;
  std::unique_ptr<Kernel> reorder_;  // where there is an order
  SelectSettings settings_;
  std::shared_ptr<DeviceState> reserve_;
  std::shared_ptr<DeviceState> state_;  // in use, for pool_
  void const* pool_ = nullptr;
};

// q and k rotated to their true positions, for layers whose attention must not rotate them.
class RopeStep {
 public:
  explicit RopeStep(std::shared_ptr<Images const> images);
  void run(Batch const& batch, std::int32_t const* request_types, void const* qkv,
           void const* cos_sin, void* out, CUstream stream) const;

 private:
  Kernel rotary_;
};

}  // namespace dycoke
