// AdamW over what this process updates of the flat buffers of a ParameterStore: weight decay on matrices only, gate
// tables with their own decay and rate. Moments hold the own parts side by side, in master precision or in bf16.
#pragma once

#include <functional>

#include "nn/parameter_store.h"
#include "optim/optim_config.h"

namespace egmla {

// How processes measure the norm of gradients together: each measures its share, then all exchange.
struct NormShare {
  std::vector<Span> spans;  // of the flat gradients; the shares of all ranks cover them once
  int rank = 0, ranks = 1;
  std::function<void(const View& values)> gather;  // brings every rank's part of a flat f32 tensor to all
};

class AdamWOptimizer {
 public:
  // gate_lr_scale multiplies the rate of gate tables, gate_weight_decay is theirs alone. `seed` is for the rounding of
  // bf16 moments.
  AdamWOptimizer(ParameterStore& store, const OptimizerConfig& config, double gate_lr_scale, double gate_weight_decay,
                 uint64_t seed = 0);

  // Global norm of all gradients, [1] on the device. With `halt`, the first norm that is not finite stands for all
  // later ones, so that step() changes nothing until the host has read it.
  const Tensor& measure_grad_norm(bool halt = false);
  // From now on the norm is the one of all ranks' shares.
  void share_norm(NormShare share);
  // Called once the kernel that updates a part (its number in ParameterStore::own()) is launched.
  void on_updated(std::function<void(size_t part)> updated) { updated_ = std::move(updated); }
  // Updates every parameter with gradients clipped to `max_norm` (0: not clipped) by the norm measured last. `step`
  // counts from 1. A non-finite norm changes nothing.
  void step(double lr, int64_t step, double max_norm);

  // [own_elements()]
  const Tensor& exp_avg() const { return exp_avg_; }
  const Tensor& exp_avg_sq() const { return exp_avg_sq_; }

 private:
  ParameterStore* store_;
  OptimizerConfig config_;
  double gate_lr_scale_, gate_weight_decay_;
  uint64_t seed_;
  void measure_shared_sums();

  Tensor exp_avg_, exp_avg_sq_, partials_, norm_;
  NormShare share_;
  Tensor shared_sums_;  // [64 ranks]: a rank's sum of squares stands first in its part
  std::function<void(size_t)> updated_;
};

}  // namespace egmla
