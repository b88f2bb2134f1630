// Where time goes: seconds and calls by kernel. While a context carries a profile, every launch waits for the device
// before and after, so the sum is a little above the time of an unobserved step.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>

namespace egmla {

class Profile {
 public:
  using Clock = std::chrono::steady_clock;

  void add(const std::string& kernel, Clock::duration time) {
    Entry& entry = entries_[kernel];
    entry.seconds += std::chrono::duration<double>(time).count();
    ++entry.calls;
  }
  void clear() { entries_.clear(); }

  // One line a kernel, the longest first, divided by `steps`: "matmul 768x2048x32768  4.21 ms  36 calls  31.0%".
  std::string table(int64_t steps) const;

 private:
  struct Entry {
    double seconds = 0;
    int64_t calls = 0;
  };
  std::map<std::string, Entry> entries_;
};

}  // namespace egmla
