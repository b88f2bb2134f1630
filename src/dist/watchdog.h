// Ends a process that would wait for ever: a rank whose peer is lost or stuck hangs inside a collective, where no code
// of its own runs. A thread watches the phase at hand and leaves with kDeadlineExitCode when its deadline passes.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "dist/communicator.h"

namespace egmla {

constexpr int kDeadlineExitCode = 3;

class Watchdog {
 public:
  // A process alone waits for nobody: no thread, no deadlines.
  explicit Watchdog(int processes);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog();

  // From now on the last words tell this communicator's last collective, and it is aborted; null: neither. It must be
  // taken off before its life ends.
  void watch_over(Communicator* communicator);
  // The phase before is done; this one may take `seconds`. `key` is the configuration's name of that limit.
  void enter(const std::string& phase, double seconds, const char* key);

 private:
  using Clock = std::chrono::steady_clock;
  void watch();
  [[noreturn]] void leave();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::string phase_;
  const char* key_ = "";
  Communicator* communicator_ = nullptr;
  double seconds_ = 0;
  Clock::time_point deadline_ = Clock::time_point::max();
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace egmla
