// The least time that a step could take on this machine with the kernels it launches, beside the time they took:
//   floor = products and attention, each distinct one timed alone, repeated without a pause
//         + bytes of everything else (its operands, each once) / the rate of a plain copy.
#pragma once

#include "core/context.h"

namespace egmla {

struct FloorPart {
  double ms = 0;        // what the kernels took in the step, one after the other
  double floor_ms = 0;  // what they must take
};

struct StepFloor {
  FloorPart products, attention, other;
  double copy_gb_per_s = 0;
  double other_gb = 0;  // what everything else moves

  double floor_ms() const { return products.floor_ms + attention.floor_ms + other.floor_ms; }
};

// From a profile of `steps` steps; times on `context`, with random operands of the profiled kernels' layouts.
StepFloor measure_floor(Context& context, Profile& profile, int64_t steps);

}  // namespace egmla
