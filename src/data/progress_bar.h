// Progress through bytes, on stderr: a bar that redraws itself on a terminal, elsewhere a line now and then.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace egmla {

class ProgressBar {
 public:
  // total: bytes, 0 when unknown.
  ProgressBar(std::string label, int64_t total);
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar();

  void update(int64_t done);

 private:
  using Clock = std::chrono::steady_clock;

  std::string label_;
  int64_t total_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

}  // namespace egmla
