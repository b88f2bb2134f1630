// A sweep's runs: every combination of the axes' values and seeds that no rule skips, each with its configuration.
// Planning opens no data and takes no memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/config.h"
#include "lab/sweep_plan_file.h"

namespace egmla {

// What a configuration's model is, known without allocating it.
struct ModelSize {
  int64_t parameters = 0, gate_tables = 0;  // gate_tables: contained in parameters
  int64_t cache_elements = 0;               // per token, all layers
  double flops_per_token = 0;               // forward and backward

  int64_t without_tables() const { return parameters - gate_tables; }
};

ModelSize model_size(const Config& config);

struct PlannedRun {
  std::string name;                    // its directory under the sweep's
  std::vector<std::string> labels;     // one for each axis
  std::vector<std::string> overrides;  // of the base, as on train's command line
  Config config;
  ModelSize size;

  int64_t tokens() const { return config.train.max_steps * config.train.batch_tokens; }
  double flops() const { return size.flops_per_token * static_cast<double>(tokens()); }
};

struct SweepPlan {
  std::string name, dir, base;
  std::vector<std::string> axes;
  std::vector<PlannedRun> runs;    // seeds of one setting stand together
  int64_t skipped = 0;             // combinations that rules leave out
  std::vector<std::string> notes;  // widths and lengths that were solved
};

SweepPlan plan_sweep(const std::string& file);

// Bytes of the checkpoints, metrics and logs that a run leaves.
int64_t disk_bytes(const PlannedRun& run);

// Changes widths and lengths as the file's hold section says; for plan_sweep.
void hold_equal(const SweepFile& file, SweepPlan& plan);

// Gives a run more settings and reads its configuration anew; for plan_sweep.
void add_overrides(PlannedRun& run, const std::string& base, const std::vector<std::string>& overrides);

bool matches(const AxisRule& rule, const std::vector<std::string>& axes, const std::vector<std::string>& labels);

}  // namespace egmla
