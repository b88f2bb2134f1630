// A tensor's values on the host in double, whatever the device computes in.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace egmla {

// f64, f32 or bf16, contiguous.
std::vector<double> host_values(const Tensor& tensor);

}  // namespace egmla
