// A sweep in tables: what it will cost, and what came out, with mean and spread over seeds.
#pragma once

#include <string>
#include <vector>

#include "lab/sweep_plan.h"
#include "lab/sweep_progress.h"

namespace egmla {

// One line a run, then the sums of tokens, time and disk over what is not finished.
std::string plan_text(const SweepPlan& plan, const std::vector<RunStatus>& statuses, const Speed& speed, int at_once);

// Writes table.csv, table.md and table.json into the sweep's directory; returns the table in Markdown.
std::string write_sweep_table(const SweepPlan& plan, const std::vector<RunStatus>& statuses);

}  // namespace egmla
