// Every launch on a context while a log lives, in order, with the kernel structs themselves, so that a benchmark can
// run them again. Kernels run meanwhile, one by one.
#pragma once

#include <vector>

#include "core/context.h"

namespace egmla {

class LaunchLog {
 public:
  explicit LaunchLog(Context& context);
  LaunchLog(const LaunchLog&) = delete;
  LaunchLog& operator=(const LaunchLog&) = delete;
  ~LaunchLog();

  const std::vector<LaunchRecord>& launches() const { return launches_; }
  void add(const LaunchRecord& launch) { launches_.push_back(launch); }
  // The log of a context; null where none lives.
  static LaunchLog* of(const Context& context);

 private:
  Context* context_;
  Profile profile_;
  ProfileScope watched_;
  std::vector<LaunchRecord> launches_;
};

}  // namespace egmla
