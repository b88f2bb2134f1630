#include "dist/weight_check.h"

#include <string>

namespace egmla {
namespace {

// Each word is mixed into one of eight chains, which the processor runs side by side.
uint64_t hash_of(const Tensor& weights) {
  const View& view = weights.view();
  std::vector<uint32_t> values((view.bytes() + 3) / 4);
  weights.context().copy_to_host(values.data(), view.data, view.bytes());
  constexpr uint64_t kPrime = 0x9E3779B97F4A7C15;
  uint64_t chains[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  for (size_t i = 0; i < values.size(); ++i) {
    uint64_t& chain = chains[i % 8];
    chain = (chain ^ values[i]) * kPrime;
    chain ^= chain >> 32;
  }
  uint64_t hash = values.size();
  for (const uint64_t chain : chains) hash = (hash ^ chain) * kPrime;
  return hash;
}

}  // namespace

void check_equal_weights(const Tensor& weights, Communicator& communicator, int64_t step) {
  const std::vector<uint64_t> hashes = communicator.gather(hash_of(weights));
  std::string others;
  for (size_t rank = 1; rank < hashes.size(); ++rank) {
    if (hashes[rank] != hashes[0]) others += fmt::format("{}{}", others.empty() ? "" : ", ", rank);
  }
  check(
      others.empty(),
      "train: step {}: the weights of rank {} differ from rank 0's; check that host's memory and libraries, and start "
      "again from the last checkpoint",
      step, others);
}

}  // namespace egmla
