// A child process of this same binary. It never outlives its parent: the kernel sends it SIGTERM when the parent goes,
// however that happens, and a training run answers by saving and leaving.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace egmla {

class ChildProcess {
 public:
  // Runs `egmla ARGUMENTS...`; both its streams go to the file `output`. `environment` holds NAME=VALUE, which replace
  // or join those of this process.
  ChildProcess(const std::vector<std::string>& arguments, const std::vector<std::string>& environment,
               const std::string& output);
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  // Stops the process and waits for it.
  ~ChildProcess();

  // The exit code once it has ended, 128 + signal when a signal ended it.
  std::optional<int> poll() { return reap(false); }
  void stop() const;

 private:
  std::optional<int> reap(bool wait);

  pid_t id_ = 0;
  std::optional<int> code_;
};

}  // namespace egmla
