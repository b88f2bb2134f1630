// Two trained models on the same validation data, by how often the token read last was seen in training. A gate table's
// row trains only when its token occurs, so a gate that helps frequent tokens alone has tables that are under-trained.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace egmla {

// Positions whose input token was an input of training in [from, to) places.
struct CountBin {
  int64_t from = 0, to = 0;
  int64_t tokens = 0;
  double loss = 0, other = 0;  // nats per token
  double error = 0;            // standard error of other - loss, positions taken as independent

  double benefit() const { return other - loss; }
};

struct Comparison {
  std::string run, other;  // checkpoints
  CountBin all;
  std::vector<CountBin> bins;  // those that hold tokens, by rising counts
};

// Losses by the counts of `inputs`; bins end at 1, 3, 10, 30, 100 ...
Comparison compare_losses(const std::vector<double>& losses, const std::vector<double>& others,
                          const std::vector<int32_t>& inputs, const std::vector<int64_t>& counts);

// Evaluates both on the validation data of the first run, and counts what that run was trained on. Overrides apply to
// both. Raises a usage error when their vocabularies differ.
Comparison compare_runs(const std::string& run, const std::string& other, const std::vector<std::string>& overrides);

std::string comparison_text(const Comparison& comparison);
std::string comparison_json(const Comparison& comparison);

}  // namespace egmla
