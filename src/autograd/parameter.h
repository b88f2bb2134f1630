// A trainable tensor as ops see it: the working copy they read and the master-precision gradient they add to.
#pragma once

#include <string>
#include <utility>

#include "core/view.h"

namespace egmla {

struct Parameter {
  std::string name;
  View value;  // working copy in the compute dtype, [out, in] or [C]
  View grad;   // same shape, f32 (f64 when computing in f64)

  // Whether a gradient kernel must add: false for the first writer of a step, which overwrites instead of a separate
  // clearing pass, true for later ones (tied head, shared table, next micro-step).
  bool accumulate() { return std::exchange(written, true); }
  // A new step begins: the next writer overwrites.
  void begin_step() { written = false; }

  bool written = false;
};

}  // namespace egmla
