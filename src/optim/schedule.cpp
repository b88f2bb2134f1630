#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace egmla {

double learning_rate(const OptimizerConfig& optimizer, const ScheduleConfig& schedule, int64_t step,
                     int64_t max_steps) {
  const int64_t warmup = schedule.warmup_steps;
  if (step < warmup) return optimizer.lr * static_cast<double>(step) / static_cast<double>(warmup);
  const double low = schedule.final_lr_fraction;
  // Fraction of the decay that lies behind `step` when it runs from `begin` to `end`.
  const auto passed = [step](int64_t begin, int64_t end) {
    if (end <= begin) return step > begin ? 1.0 : 0.0;
    return std::clamp(static_cast<double>(step - begin) / static_cast<double>(end - begin), 0.0, 1.0);
  };
  const int64_t end = schedule.decay_steps > 0 ? schedule.decay_steps : max_steps;
  switch (schedule.type) {
    case ScheduleType::cosine:
      return optimizer.lr * (low + (1 - low) * 0.5 * (1 + std::cos(std::numbers::pi * passed(warmup, end))));
    case ScheduleType::linear:
      return optimizer.lr * (1 - (1 - low) * passed(warmup, end));
    case ScheduleType::wsd: {
      const int64_t length = schedule.decay_steps > 0 ? schedule.decay_steps : std::max<int64_t>(1, max_steps / 5);
      return optimizer.lr * (1 - (1 - low) * passed(std::max(warmup, max_steps - length), max_steps));
    }
    case ScheduleType::constant:
      break;
  }
  return optimizer.lr;
}

}  // namespace egmla
