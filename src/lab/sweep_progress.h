// How far the runs of a sweep are, as their directories tell.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lab/report_data.h"
#include "lab/sweep_plan.h"

namespace egmla {

enum class RunState : uint8_t { waiting, finished, failed };

struct RunStatus {
  RunState state = RunState::waiting;
  std::string message;          // of a failure
  std::optional<RunData> data;  // of a finished run
};

// The state of a run that is not running. Raises a usage error when its directory was made under another configuration.
RunStatus status_of(const PlannedRun& run);

// FLOP/s: of the finished runs; where there are none, a guess for a GPU or by a product timed on the CPU.
struct Speed {
  double flops_per_second = 0;
  std::string source;
};
Speed expected_speed(const SweepPlan& plan, const std::vector<RunStatus>& statuses);

// GPUs that the runs would use; 0: they train on the CPU.
int gpus_for(const SweepPlan& plan);

}  // namespace egmla
