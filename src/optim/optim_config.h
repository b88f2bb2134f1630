// The `train.optimizer` and `train.schedule` sections of a configuration.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace egmla {

enum class OptimizerType : uint8_t { adamw };
enum class StateDtype : uint8_t { fp32, bf16 };
enum class ScheduleType : uint8_t { cosine, linear, wsd, constant };

struct OptimizerConfig {
  OptimizerType type = OptimizerType::adamw;
  double lr = 6e-4;
  std::array<double, 2> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;  // on matrices only
  StateDtype state_dtype = StateDtype::fp32;
};

// Warm-up is linear from 0 to lr; decay ends at lr * final_lr_fraction.
struct ScheduleConfig {
  ScheduleType type = ScheduleType::cosine;
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;  // cosine, linear: steps to the final rate, 0 for max_steps; wsd: length of the final decay,
                            // 0 for a fifth of max_steps
  double final_lr_fraction = 0.1;
};

}  // namespace egmla
