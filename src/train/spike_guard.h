// Notices a loss that lies far above those of the steps before it: more than z standard deviations above the mean of
// the last `window`. With the list of left-out batches (CheckpointState) a step's batch is a function of the state, so
// that a resumed run repeats what the uninterrupted one does.
#pragma once

#include <deque>

#include "io/checkpoint.h"
#include "io/config.h"

namespace egmla {

class SpikeGuard {
 public:
  explicit SpikeGuard(const SpikeConfig& config) : config_(config) {}

  // Standard deviations above the mean; 0 until the window is full.
  double distance(double loss) const;
  bool is_spike(double loss) const { return distance(loss) > config_.z; }
  // The next step's loss; one that is not finite is left out.
  void add(double loss);

 private:
  SpikeConfig config_;
  std::deque<double> losses_;
};

// The batch that a step trains on, counted from 0 in the order of the data.
int64_t batch_of_step(int64_t step, const CheckpointState& state);

// Adds a batch to those left out. False when the list is full.
bool leave_out(int64_t batch, CheckpointState& state);

}  // namespace egmla
