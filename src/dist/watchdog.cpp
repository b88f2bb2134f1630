#include "dist/watchdog.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace egmla {

Watchdog::Watchdog(int processes) {
  if (processes > 1) thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Watchdog::enter(const std::string& phase, double seconds, const char* key) {
  if (!thread_.joinable()) return;
  constexpr double kForever = 1e9;  // seconds; more would overflow the clock
  const auto span = std::chrono::duration<double>(std::min(seconds, kForever));
  {
    const std::lock_guard lock(mutex_);
    phase_ = phase;
    key_ = key;
    seconds_ = seconds;
    deadline_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(span);
  }
  changed_.notify_one();
}

void Watchdog::watch() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const Clock::time_point deadline = deadline_;  // enter() may change it during a wait
    if (deadline == Clock::time_point::max()) {
      changed_.wait(lock);
    } else if (Clock::now() < deadline) {
      changed_.wait_until(lock, deadline);
    } else {
      fmt::print(stderr,
                 "error: {}: not done after {} s ({}); another process is lost or stuck, or the limit is short\n",
                 phase_, seconds_, key_);
      std::fflush(stderr);
      ::_exit(kDeadlineExitCode);  // destructors would wait for the lost process
    }
  }
}

}  // namespace egmla
