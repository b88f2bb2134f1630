// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace egmla {

struct SamplingOptions {
  double temperature = 1.0;         // 0: the most probable token
  int64_t top_k = 0;                // keep the k most probable; 0: all
  double top_p = 1.0;               // keep the smallest set whose probability reaches p
  double repetition_penalty = 1.0;  // see penalize_repetition
  uint64_t seed = 0;
};

// Raises a usage error for values outside their ranges.
void check_sampling(const SamplingOptions& options);

// Logits of the ids in `seen`, however often they occur: divided by the penalty where positive, multiplied where
// negative, as transformers does. A penalty of 1 changes nothing.
void penalize_repetition(std::vector<float>& logits, std::span<const int32_t> seen, double penalty);

// The token drawn at `position` of a sequence: a pure function of (logits, options, position).
int32_t sample(const std::vector<float>& logits, const SamplingOptions& options, uint64_t position);

}  // namespace egmla
