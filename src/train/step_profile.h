// train.profile: where a training step's time goes, in the log.
#pragma once

#include <utility>

#include "core/context.h"
#include "io/config.h"

namespace egmla {

// Whether a step is profiled: the second one, whose kernels are warm, and every tenth that the console shows.
bool profiles_step(const TrainConfig& train, int64_t step);

// Logs a step's table, kernel by kernel.
void log_step_profile(Profile& profile, int64_t step);

// Returns launch_step(), profiled when the step is due.
template <class F>
auto with_step_profile(Context& context, const TrainConfig& train, int64_t step, F&& launch_step) {
  if (!profiles_step(train, step)) return launch_step();
  Profile profile;
  auto launched = [&] {
    const ProfileScope scope(context, profile);
    return launch_step();
  }();
  log_step_profile(profile, step);
  return launched;
}

}  // namespace egmla
