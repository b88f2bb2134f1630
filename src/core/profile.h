// Where time goes: seconds, calls and bytes by kernel. A launch that is timed waits for nothing; on CUDA its time is
// read from events once the profile is asked.
#pragma once

#include <any>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/launch_record.h"

namespace egmla {

class Profile {
 public:
  using Clock = std::chrono::steady_clock;
  struct Entry {
    double seconds = 0;
    int64_t calls = 0;
    int64_t bytes = 0;  // what all calls must move
    std::any kernel;    // the first call's struct; the memory it saw is gone, its shapes stay true
  };

  // `seconds` is called when times are read.
  void add(const LaunchRecord& launch, std::function<double()> seconds);
  void clear();

  // By label.
  const std::map<std::string, Entry>& entries();
  // One line a kernel, the longest first, divided by `steps`: "matmul 768x2048x32768 nn  4.21 ms  36 calls  31.0% ...".
  std::string table(int64_t steps);

 private:
  std::map<std::string, Entry> entries_;
  std::vector<std::pair<Entry*, std::function<double()>>> pending_;  // a map's entries do not move
};

}  // namespace egmla
