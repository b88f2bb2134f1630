// The learning rate of a step: linear warm-up, then the chosen decay to lr * final_lr_fraction.
#pragma once

#include "optim/optim_config.h"

namespace egmla {

// Rate of step `step` (counted from 1) of a run of `max_steps`. With warmup_steps w the first steps have lr * step / w.
//   cosine, linear: from w to decay_steps, constant at the final rate after that
//   wsd: lr until max_steps - decay_steps, then linear
double learning_rate(const OptimizerConfig& optimizer, const ScheduleConfig& schedule, int64_t step, int64_t max_steps);

}  // namespace egmla
