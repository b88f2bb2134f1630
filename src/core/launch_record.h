// What is known of one kernel launch by whoever watches it: its name, the views it reads and writes, the bytes it must
// move, and the kernel struct itself.
#pragma once

#include <any>
#include <string>
#include <vector>

#include "core/view.h"

namespace egmla {

struct NamedView {
  const char* name;
  View view;  // perhaps undefined
};

// The operands of a kernel by role. Results alone count as written, workspaces do not; what a kernel changes in place
// stands in both lists.
struct KernelViews {
  std::vector<NamedView> written, read;

  // Each operand once.
  int64_t bytes() const {
    size_t sum = 0;
    for (const auto& list : {written, read}) {
      for (const NamedView& operand : list) sum += operand.view.defined() ? operand.view.bytes() : 0;
    }
    return static_cast<int64_t>(sum);
  }
};

struct LaunchRecord {
  std::string label;
  KernelViews views;
  int64_t bytes = 0;
  std::any kernel;
};

}  // namespace egmla
