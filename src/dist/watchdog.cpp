#include "dist/watchdog.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <future>

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

void Watchdog::watch_over(Communicator* communicator) {
  const std::lock_guard lock(mutex_);
  communicator_ = communicator;
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
      leave();
    }
  }
}

// Destructors would wait for the lost process, and so may an abort: it has a few seconds.
void Watchdog::leave() {
  constexpr auto kPatience = std::chrono::seconds(3);
  const std::string last = communicator_ ? "; last collective: " + communicator_->log()->text() : "";
  fmt::print(stderr, "error: {}: not done after {} s ({}); another process is lost or stuck, or the limit is short{}\n",
             phase_, seconds_, key_, last);
  std::fflush(stderr);
  if (communicator_) {
    std::promise<void> done;
    std::future<void> aborted = done.get_future();
    std::thread([&] {
      communicator_->abort();
      done.set_value();
    }).detach();
    aborted.wait_for(kPatience);
  }
  ::_exit(kDeadlineExitCode);
}

}  // namespace egmla
