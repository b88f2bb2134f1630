// Replicas must hold equal weights, bit for bit; a rank that does not (bad memory, another library) spoils the run.
#pragma once

#include "core/tensor.h"
#include "dist/communicator.h"

namespace egmla {

// Compares the bits of a tensor on all ranks; where they differ, every rank raises an error that names the step and the
// ranks unlike the root.
void check_equal_weights(const Tensor& weights, Communicator& communicator, int64_t step);

}  // namespace egmla
