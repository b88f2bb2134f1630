// Runs a sweep: each of its runs as a child process `egmla train`, one after another or several at a time. What is
// finished stays finished, what failed is recorded and tried again at the next start.
#pragma once

#include <string>

namespace egmla {

struct SweepOptions {
  int jobs = 1;  // runs at a time: one GPU each, or the CPU's threads divided
};

// The runs with their sizes, and the sweep's tokens, time and disk; opens no data.
std::string sweep_overview(const std::string& file, const SweepOptions& options);

// Trains what is not finished and writes table.md, table.csv, table.json and sweep.json into the sweep's directory.
// Returns the table in Markdown. Raises a runtime error when a run failed or a signal stopped the sweep.
std::string run_sweep(const std::string& file, const SweepOptions& options);

}  // namespace egmla
