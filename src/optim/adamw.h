// AdamW over the flat buffers of a ParameterStore: weight decay on matrices only, gate tables with their own decay and
// rate. Moments lie in the layout of the master copy.
#pragma once

#include "nn/parameter_store.h"
#include "optim/optim_config.h"

namespace egmla {

class AdamWOptimizer {
 public:
  // gate_lr_scale multiplies the rate of gate tables, gate_weight_decay is theirs alone.
  AdamWOptimizer(ParameterStore& store, const OptimizerConfig& config, double gate_lr_scale, double gate_weight_decay);

  // Global norm of all gradients, [1] on the device. With `halt`, the first norm that is not finite stands for all
  // later ones, so that step() changes nothing until the host has read it.
  const Tensor& measure_grad_norm(bool halt = false);
  // Updates every parameter with gradients clipped to `max_norm` (0: not clipped) by the norm measured last. `step`
  // counts from 1. A non-finite norm changes nothing.
  void step(double lr, int64_t step, double max_norm);

  const Tensor& exp_avg() const { return exp_avg_; }
  const Tensor& exp_avg_sq() const { return exp_avg_sq_; }

 private:
  ParameterStore* store_;
  OptimizerConfig config_;
  double gate_lr_scale_, gate_weight_decay_;
  Tensor exp_avg_, exp_avg_sq_, partials_, norm_;
};

}  // namespace egmla
