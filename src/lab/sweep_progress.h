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

const char* name_of(RunState state);

// The state of a run that is not running. A finished one has its last checkpoint, unless the sweep has recorded that it
// finished: checkpoints may be removed then. Raises a usage error when its directory was made under another
// configuration.
RunStatus status_of(const PlannedRun& run, bool recorded_finished);

// Of all runs, before any is started; what sweep.json says counts as recorded.
std::vector<RunStatus> statuses_of(const SweepPlan& plan);

// Equal for runs that differ in their names and directories alone, so that one training serves both.
std::string training_key(const PlannedRun& run);

// Makes a run's directory from that of a finished run of the same training; its checkpoints are linked.
void adopt(const PlannedRun& run, const PlannedRun& finished);

// FLOP/s: of the finished runs; where there are none, a guess for a GPU or by a product timed on the CPU.
struct Speed {
  double flops_per_second = 0;
  std::string source;
};
Speed expected_speed(const SweepPlan& plan, const std::vector<RunStatus>& statuses);

// GPUs that the runs would use; 0: they train on the CPU.
int gpus_for(const SweepPlan& plan);

}  // namespace egmla
