#include "train/step_profile.h"

#include <spdlog/spdlog.h>

namespace egmla {

bool profiles_step(const TrainConfig& train, int64_t step) {
  constexpr int64_t kLines = 10;
  return train.profile && (step == 2 || step % (kLines * train.log.every) == 0);
}

void log_step_profile(Profile& profile, int64_t step) {
  std::string table = profile.table(1);
  while (!table.empty() && table.back() == '\n') table.pop_back();
  spdlog::info("step {} by kernel:\n{}", step, table);
}

}  // namespace egmla
