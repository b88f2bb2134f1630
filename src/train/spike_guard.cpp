#include "train/spike_guard.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace egmla {

double SpikeGuard::distance(double loss) const {
  constexpr double kSmallest = 1e-6;  // of the mean: a window of equal losses has no deviation to count in
  if (std::ssize(losses_) < config_.window || !std::isfinite(loss)) return 0;
  const auto count = static_cast<double>(losses_.size());
  const double mean = std::accumulate(losses_.begin(), losses_.end(), 0.0) / count;
  double squares = 0;
  for (const double each : losses_) squares += (each - mean) * (each - mean);
  return (loss - mean) / std::max(std::sqrt(squares / count), kSmallest * std::abs(mean));
}

void SpikeGuard::add(double loss) {
  if (!std::isfinite(loss)) return;
  losses_.push_back(loss);
  if (std::ssize(losses_) > config_.window) losses_.pop_front();
}

int64_t batch_of_step(int64_t step, const CheckpointState& state) {
  int64_t batch = step - 1;
  for (int64_t i = 0; i < state.rollbacks; ++i) batch += state.skipped_batches[static_cast<size_t>(i)] <= batch ? 1 : 0;
  return batch;
}

bool leave_out(int64_t batch, CheckpointState& state) {
  if (state.rollbacks >= kMostRollbacks) return false;
  auto& batches = state.skipped_batches;
  batches[static_cast<size_t>(state.rollbacks++)] = batch;
  std::sort(batches.begin(), batches.begin() + state.rollbacks);
  return true;
}

}  // namespace egmla
