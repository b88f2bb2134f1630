// The console's line for a step, and the short forms of counts and durations it shares with reports.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace egmla {

struct Progress {
  int64_t step = 0;
  int64_t total = 0;
  double loss = 0.0;
  double lr = 0.0;
  double grad_norm = 0.0;
  double tokens_per_s = 0.0;
  std::optional<double> mfu{};           // fraction
  std::optional<double> seconds_left{};  // unknown at the first step
};

// "step  120/2000   6.0%  loss 3.2154  lr 6.00e-04  norm 0.84  12.3k tok/s  mfu 41.2%  2m05s left"
std::string progress_line(const Progress& progress);

// Three significant digits: "950", "1.20k", "34.5M", "1.07B".
std::string format_count(double value);

// The two largest units: "7s", "2m05s", "3h07m", "4d02h".
std::string format_duration(double seconds);

}  // namespace egmla
