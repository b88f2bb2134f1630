// Decoding many sequences of different lengths at once, one token each a step, through a cache that holds per token and
// layer what the paper counts (nn/decode_state.h). A step on CUDA is one recorded graph.
#pragma once

#include <cstdint>
#include <vector>

#include "core/device_graph.h"
#include "nn/transformer.h"

namespace egmla {

class BatchDecoder {
 public:
  // Room for `capacity` tokens of each sequence; raises a usage error beyond max_position_embeddings.
  BatchDecoder(Transformer& model, int64_t sequences, int64_t capacity);

  // Feeds the next tokens of one sequence at once, through the training kernels.
  void prefill(int64_t sequence, const std::vector<int32_t>& ids);
  // Feeds each sequence one token: ids, or its most probable next one. A sequence at its capacity stays there, and what
  // it is fed then has no meaning.
  void step(const std::vector<int32_t>& ids);
  void step();

  // What follows the last token fed: logits [V], and the id of the largest, for each sequence.
  std::vector<float> logits(int64_t sequence);
  std::vector<int32_t> most_probable() const { return state_.tokens.to_host<int32_t>(); }
  View logits();  // [B, V] in the compute type

  int64_t sequences() const { return state_.sequences(); }
  int64_t capacity() const { return state_.capacity(); }
  int64_t length(int64_t sequence) const { return lengths_[static_cast<size_t>(sequence)]; }
  bool folded() const { return !state_.tables.empty(); }
  DecodeState& state() { return state_; }
  // For measurements: every sequence has `length` tokens, copies of sequence 0's first ones.
  void spread(int64_t length);

 private:
  void check_ids(const std::vector<int32_t>& ids) const;
  void set_position(int64_t sequence, int64_t position);
  void run_step();

  Transformer* model_;
  DecodeState state_;
  std::vector<int64_t> lengths_;
  DeviceGraph graph_;
};

// Bytes that folding the gates of `model` takes; 0 where there is nothing to fold.
int64_t folded_gate_bytes(const Transformer& model);

}  // namespace egmla
