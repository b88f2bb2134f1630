// Writes checkpoints beside training: one at a time, on a thread of its own. A failure is raised where the run next
// asks.
#pragma once

#include <functional>
#include <future>

namespace egmla {

class CheckpointSaver {
 public:
  // Runs `write` on another thread, once the one before is through.
  void start(std::function<void()> write);
  // Until nothing is being written; raises what the last write raised.
  void wait();
  // The same without waiting: nothing happens while a write goes on.
  void raise_failure();

 private:
  std::future<void> writing_;  // its destructor waits
};

}  // namespace egmla
