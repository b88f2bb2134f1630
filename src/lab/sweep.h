// Runs sweeps: each of their runs as a child process `egmla train`, one after another or several at a time. What is
// finished stays finished, what failed is recorded and tried again at the next start.
#pragma once

#include <string>
#include <vector>

namespace egmla {

struct SweepOptions {
  int jobs = 1;             // runs at a time: one GPU each, or the CPU's threads divided
  bool share_gpus = false;  // several runs may have the same GPU
  double time_limit = 0;    // seconds; no run starts that would not end by then. 0: none
};

// The runs with their sizes, and each sweep's tokens, time and disk; opens no data.
std::string sweep_overview(const std::vector<std::string>& files, const SweepOptions& options);

// Trains what is not finished, the sweeps in their order and in each the first seed of every setting first. Keeps
// table.md, table.csv, table.json and sweep.json in the sweeps' directories. Returns the tables in Markdown. Raises a
// runtime error when a run failed, or a signal or the time limit left some to do.
std::string run_sweeps(const std::vector<std::string>& files, const SweepOptions& options);

}  // namespace egmla
