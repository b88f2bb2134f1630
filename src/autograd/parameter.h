// A trainable tensor as ops see it: the working copy they read and the master-precision gradient they add to.
// An op announces each use (Tape::use) before it reads the value and ends it (end_use) once the kernels that write the
// gradient are launched. When no use is left the micro-step's gradient is complete, and the observer is told.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "core/tensor.h"

namespace egmla {

struct Parameter;

// Whoever moves values and gradients between processes.
class ParameterObserver {
 public:
  virtual ~ParameterObserver() = default;
  // The next kernel reads the value.
  virtual void before_read(const Parameter& parameter) = 0;
  // The kernels that complete this micro-step's gradient are launched.
  virtual void gradient_ready(const Parameter& parameter) = 0;
};

// A matrix in e4m3 with the factors of its blocks (kernels/quantize.h).
struct Fp8Matrix {
  Tensor values, scales;
  bool square = false;
};

// A matrix and its transpose; either may be undefined.
struct Fp8Copies {
  Fp8Matrix rows, columns;
};

struct Parameter {
  std::string name;
  View value;  // working copy in the compute dtype, [out, in] or [C]
  View grad;   // same shape, f32 (f64 when computing in f64)

  // Whether a gradient kernel must add: false for the first writer of a step, which overwrites instead of a separate
  // clearing pass, true for later ones (tied head, shared table, next micro-step).
  bool accumulate() { return std::exchange(written, true); }
  // A new step begins: the next writer overwrites.
  void begin_step() {
    written = false;
    uses = 0;
    fp8_current = false;
  }
  void end_use() {
    if (--uses == 0 && observer) observer->gradient_ready(*this);
  }

  bool written = false;
  int32_t uses = 0;     // recorded, with a gradient still to be written
  int32_t ordinal = 0;  // position among the parameters of its store
  ParameterObserver* observer = nullptr;
  // The value in e4m3, made by the first op of a step that asks for it; the memory stays.
  Fp8Copies fp8{};
  bool fp8_current = false;
};

}  // namespace egmla
