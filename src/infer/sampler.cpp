#include "infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_set>

#include "core/check.h"
#include "core/rng.h"

namespace egmla {

void check_sampling(const SamplingOptions& options) {
  check_usage(options.temperature >= 0, "--temperature: {} is negative; 0 picks the most probable token",
              options.temperature);
  check_usage(options.top_k >= 0, "--top-k: {} is negative; 0 keeps all tokens", options.top_k);
  check_usage(options.repetition_penalty > 0, "--repetition-penalty: {}; expected a number above 0, 1 for none",
              options.repetition_penalty);
  check_usage(options.top_p > 0 && options.top_p <= 1, "--top-p: {} is outside (0, 1]", options.top_p);
}

void penalize_repetition(std::vector<float>& logits, std::span<const int32_t> seen, double penalty) {
  if (penalty == 1.0) return;
  const std::unordered_set<int32_t> ids(seen.begin(), seen.end());
  const auto factor = static_cast<float>(penalty);
  for (const int32_t id : ids) {
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / factor : logit * factor;
  }
}

int32_t sample(const std::vector<float>& logits, const SamplingOptions& options, uint64_t position) {
  const auto largest = std::max_element(logits.begin(), logits.end());
  if (options.temperature == 0) return static_cast<int32_t>(largest - logits.begin());
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto higher = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  size_t kept = order.size();
  if (options.top_k > 0) kept = std::min(kept, static_cast<size_t>(options.top_k));
  if (kept < order.size() || options.top_p < 1) {
    std::partial_sort(order.begin(),
                      order.begin() + static_cast<std::ptrdiff_t>(options.top_p < 1 ? order.size() : kept), order.end(),
                      higher);
  }
  std::vector<double> weights(kept);
  double total = 0;
  for (size_t i = 0; i < kept; ++i) {
    weights[i] = std::exp((static_cast<double>(logits[static_cast<size_t>(order[i])]) - static_cast<double>(*largest)) /
                          options.temperature);
    total += weights[i];
  }
  if (options.top_p < 1) {
    double sum = 0;
    size_t i = 0;
    while (i < kept && sum < options.top_p * total) sum += weights[i++];
    kept = i;
    total = sum;
  }
  double left = uniform(options.seed, position) * total;
  for (size_t i = 0; i < kept; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[kept - 1];
}

}  // namespace egmla
