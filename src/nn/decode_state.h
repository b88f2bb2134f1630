// What a batch of sequences keeps while it is decoded: per layer exactly what the model's cache is said to hold, token
// ids once per sequence, and memory for one step's intermediate results.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "kernels/decode_chain.h"

namespace egmla {

// One layer's cache. MHA: rotated k | v. MLA and EG-MLA: c | rotated k^R (gated c where the gate sits there). Beside
// it, for a gate behind the up-projection: mean and 1 / standard deviation of each token's norm (one pair, or K's and
// V's where they are apart), which every head needs and none can compute alone.
struct LayerCache {
  Tensor rows;                     // [B, capacity, cache_width()]
  std::vector<Tensor> mean, rstd;  // [B, capacity, G] f32/f64 each, G 1 or H

  // The same memory of sequence b alone, [1, capacity, ...].
  LayerCache sequence(int64_t b) const;
};

class DecodeState {
 public:
  DecodeState(Context& context, DType dtype, int64_t sequences, int64_t capacity);

  Context& context() const { return *context_; }
  DType dtype() const { return dtype_; }
  DType statistics() const { return dtype_ == DType::f64 ? DType::f64 : DType::f32; }
  int64_t sequences() const { return sequences_; }
  int64_t capacity() const { return capacity_; }

  // Memory of a step by name, the same each time it is asked for (a recorded step holds its address).
  View buffer(const std::string& name, const Shape& shape, DType dtype);
  View buffer(const std::string& name, const Shape& shape) { return buffer(name, shape, dtype_); }
  // A part of this step. It runs with those put down right after it, as one launch where they suit it: at the latest
  // before the next kernel that is started by launch(state, ...).
  void add(const ChainPart& part) { parts_.push_back(part); }
  void run_parts();
  // Bytes of all caches with their ids and statistics; of the buffers.
  int64_t cache_bytes() const;
  int64_t buffer_bytes() const;

  Tensor tokens, positions;        // [B] i32: the token each sequence is fed next, and where it stands
  Tensor ids;                      // [B, capacity] i32, of models that gate by token; else undefined
  std::vector<LayerCache> layers;  // one a layer
  std::vector<Tensor> tables;      // W^UE E_l, [V, features] a layer, where gates are folded; else empty

 private:
  Context* context_;
  DType dtype_;
  int64_t sequences_, capacity_;
  std::map<std::string, Tensor> buffers_;
  std::vector<ChainPart> parts_;
  Tensor turn_;  // DecodeChain::turn
};

// Every other kernel of a step.
template <class Kernel>
void launch(DecodeState& state, const Kernel& kernel) {
  state.run_parts();
  launch(state.context(), kernel);
}

}  // namespace egmla
